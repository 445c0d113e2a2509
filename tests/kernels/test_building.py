"""`plugins build`: what is built, found again, missing, or fails."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from robust_export import kernels
from robust_export.errors import BuildError
from robust_export.kernels.headers.tensorrt import find_tensorrt_headers
from tests.kernels.stand_ins import run, write_failing_program


def test_real_build_loads(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build of the real sources, made by `make setup`, `plugins build` or the fixture `built`."""
    monkeypatch.delenv("ROBUST_EXPORT_ORT_LIBRARY")
    build = kernels.build()
    assert build.path.is_file()
    assert (build.tensorrt is not None) == _can_build_tensorrt(), build.without_tensorrt
    libraries = json.loads(run("plugins", "info", "--json").stdout)["libraries"]
    entry = libraries["onnxruntime"]
    assert entry.pop("instructions") in ("avx512", "avx2", "portable")
    entry.pop("cuda")
    assert entry == {"path": str(kernels.ort_library()), "loads": True, "why": None}
    entry = libraries["tensorrt"]
    if build.tensorrt:
        version = str(build.tensorrt_headers).split(" in ")[0]
        assert (entry["path"], entry["loads"]) == (str(kernels.trt_library()), True), entry
        assert entry["info"].startswith(f"{version} headers, CUDA ")


def _can_build_tensorrt() -> bool:
    try:
        find_tensorrt_headers()
    except BuildError:
        return False
    return kernels.find_nvcc() is not None


def test_second_build_is_reused_unless_forced(stand_in_sources: Path) -> None:
    assert run("plugins", "build").exit_code == 0
    library = kernels.ort_library()
    assert library is not None
    built_at = library.stat().st_mtime_ns
    assert run("plugins", "build").exit_code == 0
    assert library.stat().st_mtime_ns == built_at
    assert run("plugins", "build", "--force").exit_code == 0
    assert library.stat().st_mtime_ns > built_at
    assert [p.name for p in library.parent.parent.iterdir()] == [library.parent.name]  # no temporary folders
    info = json.loads(run("plugins", "info", "--json").stdout)
    assert info["libraries"]["onnxruntime"]["path"] == str(library)
    assert info["tools"]["compiler"]


def test_compiler_error_is_shown(
    stand_in_sources: Path, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = write_failing_program(tmp_path / "c++", "sparta.cpp: error: this compiler is broken")
    monkeypatch.setenv("CXX", str(compiler))
    result = run("plugins", "build")
    assert result.exit_code == 1
    assert "this compiler is broken" in result.stderr
    assert len(result.stderr.splitlines()) < 20
    assert kernels.ort_library() is None
    assert list((empty_cache / "plugins").iterdir()) == []


def test_nvcc_error_costs_only_the_gpu_kernels(
    stand_in_sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stand_in_sources / "no-cuda").touch()
    result = run("plugins", "build")
    assert result.exit_code == 0, result.output
    for part in ("the GPU kernel", "the TensorRT plugin"):
        assert f"without {part}: `" in result.stderr
    assert "nvcc does not support this host compiler" in result.stderr
    assert kernels.describe()["libraries"]["onnxruntime"]["cuda"] is False
    assert kernels.trt_library() is None
    first = kernels.ort_library()
    assert "does not support" in run("plugins", "build").stderr  # reported from the cached build
    assert kernels.ort_library() == first
    monkeypatch.setenv("CUDACXX", "no-nvcc-here")
    assert "without the GPU kernel" not in run("plugins", "build").stderr
    assert kernels.ort_library() != first


def test_missing_compiler(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("plugins", "build")
    assert result.exit_code == 1
    assert "no C++ compiler" in result.stderr
    assert "apt-get install g++" in result.stderr
    assert "C++ compiler" in kernels.why_no_ort_library()
    assert len(kernels.why_no_ort_library().splitlines()) == 1
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "'no-such-compiler', which is not a command" in run("plugins", "build").stderr


def test_missing_cmake(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "pip install cmake" in run("plugins", "build").stderr


def test_paths_may_be_relative(
    stand_in_sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUST_EXPORT_CACHE", "cache")
    library = kernels.build().path
    assert library.is_relative_to(tmp_path / "cache")
    shutil.copy(library, "own.so")
    monkeypatch.setenv("ROBUST_EXPORT_ORT_LIBRARY", "own.so")
    assert kernels.describe()["libraries"]["onnxruntime"]["loads"] is True
