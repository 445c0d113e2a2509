"""The TensorRT plugin in `plugins build`, with stand-ins for the sources: built, missing, or failing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from robust_export import kernels
from robust_export.cli.machine_checks import check_machine
from robust_export.errors import BuildError
from tests.kernels.stand_ins import TRT, run, set_providers, write_trt_headers


def test_both_libraries_are_built_once(stand_in_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.trt_library() is None
    assert kernels.why_no_trt_library().endswith(
        "it is not built; build it with `robust-export plugins build`"
    )
    result = run("plugins", "build", "--json")
    assert result.exit_code == 0, result.output
    libraries = json.loads(result.stdout)["libraries"]
    library = kernels.trt_library()
    assert library is not None
    assert libraries["tensorrt"] == {
        "path": str(library), "loads": True, "why": None, "info": "GPUs 75-real 90",
        "architectures": "75-real;90",
        "headers": f"TensorRT 10.0 in TENSORRT_INCLUDE_DIR ({stand_in_sources.parent / 'tensorrt'})",
    }  # fmt: skip
    assert libraries["onnxruntime"]["cuda"] is True
    assert kernels.ort_library() == library.with_name("libsparta_ort.so")
    built_at = library.stat().st_mtime_ns
    again = run("plugins", "build")
    assert f"built {library} for GPUs 75-real;90, TensorRT 10.0 in" in again.stderr
    assert library.stat().st_mtime_ns == built_at
    assert "yes: GPUs 75-real 90" in " ".join(run("plugins", "info").stdout.split())
    monkeypatch.setenv("ROBUST_EXPORT_CUDA_ARCHS", "90")
    assert kernels.build().tensorrt not in (None, library)
    write_trt_headers(stand_in_sources.parent / "tensorrt", "11.1")
    assert (
        kernels.build().tensorrt_headers
        == f"TensorRT 11.1 in TENSORRT_INCLUDE_DIR ({stand_in_sources.parent / 'tensorrt'})"
    )
    assert len(list(library.parent.parent.iterdir())) == 3


def test_no_cuda_provider_is_needed(stand_in_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_providers(monkeypatch, cuda=False)
    built = kernels.build()
    assert built.tensorrt is not None
    assert built.without_cuda is built.without_tensorrt is None
    assert built.architectures == "75-real;90"
    assert kernels.describe()["libraries"]["onnxruntime"]["cuda"] is False


@pytest.mark.parametrize(
    ("trt", "reason"),
    [
        ('#error "TensorRT has changed"\n', "TensorRT has changed"),
        (TRT + "void missing(); void* use = reinterpret_cast<void*>(missing);\n", "undefined symbol"),
        (TRT + "#include <cstdlib>\nstruct S { S() { std::abort(); } } s;\n", "ended in SIGABRT"),
        (TRT + "#include <cstdlib>\nstruct S { S() { std::_Exit(0); } } s;\n", "ended with code 0"),
    ],
    ids=["does not compile", "does not link", "aborts", "exits"],
)
def test_failing_plugin_costs_only_itself(stand_in_sources: Path, trt: str, reason: str) -> None:
    (stand_in_sources / "trt.cpp").write_text(trt)
    result = run("plugins", "build")
    assert result.exit_code == 0, result.output
    assert "without the TensorRT plugin: " in result.stderr
    assert reason in result.stderr
    assert "without the GPU kernel" not in result.stderr
    assert kernels.trt_library() is None
    library = kernels.ort_library()
    assert library is not None
    assert kernels.describe()["libraries"]["onnxruntime"]["cuda"] is True
    built_at = library.stat().st_mtime_ns
    assert reason in run("plugins", "build").stderr  # reported from the cached build
    assert library.stat().st_mtime_ns == built_at


def test_missing_headers_or_nvcc(stand_in_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORRT_INCLUDE_DIR")
    result = run("plugins", "build")
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stderr.splitlines() if "TensorRT" in line]
    assert line.startswith(
        "without the TensorRT plugin: TensorRT's headers, 10.0 or later, are not on this machine"
    )
    assert kernels.why_no_trt_library() == line.replace("without the", "no")
    monkeypatch.setenv("CUDACXX", "no-nvcc-here")
    result = run("plugins", "build")
    assert result.exit_code == 0, result.output
    assert "without the TensorRT plugin: there is no nvcc" in result.stderr
    assert "there is no nvcc" in kernels.why_no_trt_library()
    entry = kernels.describe()["libraries"]["tensorrt"]
    assert entry == {"path": None, "loads": False, "why": kernels.why_no_trt_library(), "headers": None}


def test_wrong_include_dir_is_an_error(stand_in_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(stand_in_sources))
    result = run("plugins", "build")
    assert result.exit_code == 1
    assert f"TENSORRT_INCLUDE_DIR is {stand_in_sources}" in result.stderr
    assert kernels.ort_library() is None


def test_library_named_by_variable(stand_in_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = kernels.build().tensorrt
    assert built is not None
    copy = stand_in_sources.parent / "copy.so"
    shutil.copy(built, copy)
    monkeypatch.chdir(stand_in_sources.parent)
    monkeypatch.setenv("ROBUST_EXPORT_TRT_LIBRARY", "copy.so")
    assert kernels.trt_library() == copy
    entry = kernels.describe()["libraries"]["tensorrt"]
    assert (entry["path"], entry["loads"], entry["headers"]) == (str(copy), True, None)
    copy.write_bytes(b"not a library")
    entry = kernels.describe()["libraries"]["tensorrt"]
    assert entry["loads"] is False
    assert "copy.so" in entry["why"]
    copy.unlink()
    with pytest.raises(BuildError, match=r"ROBUST_EXPORT_TRT_LIBRARY names copy\.so, which is not a file"):
        kernels.trt_library()
    monkeypatch.setenv("ROBUST_EXPORT_TRT_LIBRARY", "")
    assert kernels.trt_library() is None
    assert "ROBUST_EXPORT_TRT_LIBRARY is set to an empty string" in kernels.why_no_trt_library()


def test_doctor_reports_tensorrt(stand_in_sources: Path) -> None:
    checks = {check.name: check for check in check_machine()}
    assert checks["nvcc"].status == "ok"
    assert checks["TensorRT's headers"].found.startswith("TensorRT 10.0 in")
    assert checks["TensorRT plugin"].status == "optional"
    assert "plugins build" in checks["TensorRT plugin"].advice
    assert checks["TensorRT"].status in ("ok", "optional")
    library = kernels.build().tensorrt
    assert {check.name: check for check in check_machine()}["TensorRT plugin"].found == str(library)
