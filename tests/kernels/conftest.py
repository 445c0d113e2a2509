"""Machines that lack something, for the tests of building the kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from robust_export import kernels
from robust_export.errors import BuildError
from tests.kernels.stand_ins import CMAKE, ORT, TRT, headers, program, providers


@pytest.fixture
def quick_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A C++ compiler that optimises nothing, for tests of building, not of what is built."""
    try:
        compiler = kernels.find_tools().compiler
    except BuildError as error:
        pytest.skip(str(error))
    script = tmp_path / "quick-c++"
    script.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache, no TensorRT, no GPU, and an nvcc that compiles nothing."""
    monkeypatch.setenv("ROBUST_EXPORT_CACHE", str(tmp_path / "cache"))
    for name in ("ORT_LIBRARY", "TRT_LIBRARY", "CUDA_ARCHS"):
        monkeypatch.delenv(f"ROBUST_EXPORT_{name}", raising=False)
    monkeypatch.delenv("TENSORRT_INCLUDE_DIR", raising=False)
    monkeypatch.setattr("robust_export.kernels.headers.tensorrt.SYSTEM", ())
    monkeypatch.setattr("robust_export.kernels.headers.tensorrt.WHEEL", "no_such_wheel")
    monkeypatch.setattr("robust_export.kernels.toolchain._local_architectures", set)
    monkeypatch.setenv("CUDACXX", str(program(tmp_path / "bin/nvcc", "compute_75", "compute_90")))
    return tmp_path


@pytest.fixture
def source(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for the kernels' sources, which compile in no time; TensorRT's headers are there."""
    try:
        kernels.find_tools()
    except BuildError as error:
        pytest.skip(str(error))
    folder = bare / "plugins"
    folder.mkdir()
    for name, text in {"CMakeLists.txt": CMAKE, "ort.cpp": ORT, "trt.cpp": TRT}.items():
        (folder / name).write_text(text)
    monkeypatch.setattr("robust_export.kernels.building.source_folder", lambda: folder)
    monkeypatch.setattr("robust_export.kernels.paths.source_digest", lambda: "standin")
    api = bare / "onnxruntime"
    api.mkdir()
    (api / "onnxruntime_cxx_api.h").touch()
    (api / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 18\n")
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE_DIR", str(api))
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(headers(bare / "tensorrt", "10.0")))
    providers(monkeypatch, cuda=True)
    return folder
