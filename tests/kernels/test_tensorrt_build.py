"""Building the library for TensorRT beside the one for ONNX Runtime: what is built, missing, or fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from robust_export import kernels
from robust_export.cli.machine_checks import check_machine
from robust_export.errors import BuildError
from robust_export.kernels.headers.onnxruntime import find_ort_headers
from robust_export.kernels.headers.tensorrt import find_tensorrt_headers
from tests.kernels.stand_ins import TRT, headers, providers, run

pytestmark = pytest.mark.usefixtures("bare")


def test_both_libraries_are_built_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.trt_library() is None
    assert kernels.why_no_trt_library().endswith(
        "it is not built; build it with `robust-export plugins build`"
    )
    result = run("plugins", "build", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["libraries"]
    library = kernels.trt_library()
    assert library is not None
    assert found["tensorrt"] == {
        "path": str(library), "loads": True, "why": None, "info": "GPUs 75-real 90",
        "architectures": "75-real;90",
        "headers": f"TensorRT 10.0 in TENSORRT_INCLUDE_DIR ({source.parent / 'tensorrt'})",
    }  # fmt: skip
    assert found["onnxruntime"]["cuda"] is True
    assert kernels.ort_library() == library.with_name("libsparta_ort.so")
    made = library.stat().st_mtime_ns
    again = run("plugins", "build")
    assert f"built {library} for GPUs 75-real;90, TensorRT 10.0 in" in again.stderr
    assert library.stat().st_mtime_ns == made
    assert "yes: GPUs 75-real 90" in " ".join(run("plugins", "info").stdout.split())
    monkeypatch.setenv("ROBUST_EXPORT_CUDA_ARCHS", "90")
    assert kernels.build().tensorrt not in (None, library)
    headers(source.parent / "tensorrt", "11.1")
    assert (
        kernels.build().tensorrt_headers
        == f"TensorRT 11.1 in TENSORRT_INCLUDE_DIR ({source.parent / 'tensorrt'})"
    )
    assert len(list(library.parent.parent.iterdir())) == 3


def test_tensorrt_needs_no_cuda_provider_of_onnx_runtime(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers(monkeypatch, cuda=False)
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
def test_a_plugin_that_fails_costs_only_itself(source: Path, trt: str, reason: str) -> None:
    (source / "trt.cpp").write_text(trt)
    result = run("plugins", "build")
    assert result.exit_code == 0, result.output
    assert "without the TensorRT plugin: " in result.stderr
    assert reason in result.stderr
    assert "without the GPU kernel" not in result.stderr
    assert kernels.trt_library() is None
    library = kernels.ort_library()
    assert library is not None
    assert kernels.describe()["libraries"]["onnxruntime"]["cuda"] is True
    made = library.stat().st_mtime_ns
    assert reason in run("plugins", "build").stderr  # said again, not tried again
    assert library.stat().st_mtime_ns == made


def test_an_nvcc_that_fails_costs_both_kernels_for_gpus(source: Path) -> None:
    (source / "no-cuda").touch()
    result = run("plugins", "build")
    assert result.exit_code == 0, result.output
    for part in ("the kernel for GPUs", "the TensorRT plugin"):
        assert f"without {part}: `" in result.stderr
    assert "nvcc dislikes this host compiler" in result.stderr
    assert kernels.describe()["libraries"]["onnxruntime"]["cuda"] is False
    assert kernels.trt_library() is None


def test_what_is_missing_is_no_failure(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_headers_that_are_named_wrong_are_a_failure(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(source))
    result = run("plugins", "build")
    assert result.exit_code == 1
    assert f"TENSORRT_INCLUDE_DIR is {source}" in result.stderr
    assert kernels.ort_library() is None


# --- a library that is given ---


def test_a_library_that_is_given(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = kernels.build().tensorrt
    assert built is not None
    own = source.parent / "own.so"
    shutil.copy(built, own)
    monkeypatch.chdir(source.parent)
    monkeypatch.setenv("ROBUST_EXPORT_TRT_LIBRARY", "own.so")
    assert kernels.trt_library() == own
    entry = kernels.describe()["libraries"]["tensorrt"]
    assert (entry["path"], entry["loads"], entry["headers"]) == (str(own), True, None)
    own.write_bytes(b"not a library")
    entry = kernels.describe()["libraries"]["tensorrt"]
    assert entry["loads"] is False
    assert "own.so" in entry["why"]
    own.unlink()
    with pytest.raises(BuildError, match=r"ROBUST_EXPORT_TRT_LIBRARY names own\.so, which is no file"):
        kernels.trt_library()
    monkeypatch.setenv("ROBUST_EXPORT_TRT_LIBRARY", "")
    assert kernels.trt_library() is None
    assert "ROBUST_EXPORT_TRT_LIBRARY is set to nothing" in kernels.why_no_trt_library()


def test_doctor_says_what_tensorrt_needs(source: Path) -> None:
    checks = {check.name: check for check in check_machine()}
    assert checks["nvcc"].status == "ok"
    assert checks["TensorRT's headers"].found.startswith("TensorRT 10.0 in")
    assert checks["TensorRT plugin"].status == "optional"
    assert "plugins build" in checks["TensorRT plugin"].advice
    assert checks["TensorRT"].status in ("ok", "optional")
    library = kernels.build().tensorrt
    assert {check.name: check for check in check_machine()}["TensorRT plugin"].found == str(library)


# --- the real one ---


def test_the_real_plugin_is_built_and_opens(
    built: Path, bare: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # of `bare`: this machine as it is
    request.getfixturevalue("quick_compiler")
    if kernels.find_nvcc() is None:
        pytest.skip("there is no nvcc")
    try:
        found = find_tensorrt_headers()
    except BuildError as error:
        pytest.skip(str(error))
    monkeypatch.setenv(
        "ONNXRUNTIME_INCLUDE_DIR", str(find_ort_headers(kernels.cache_folder() / "headers").path)
    )
    monkeypatch.setenv("ROBUST_EXPORT_CACHE", str(bare / "real"))
    monkeypatch.delenv("ROBUST_EXPORT_ORT_LIBRARY", raising=False)
    monkeypatch.setenv("ROBUST_EXPORT_CUDA_ARCHS", "80-real")
    result = run("plugins", "build", "--json")
    assert result.exit_code == 0, result.output
    entry = json.loads(result.stdout)["libraries"]["tensorrt"]
    assert entry["loads"] is True, entry
    assert entry["path"] == str(kernels.trt_library())
    assert entry["headers"] == found.origin
    assert entry["info"].startswith(found.origin.split(" in ")[0] + " headers, CUDA ")
    assert entry["info"].endswith("GPUs 80-real")
