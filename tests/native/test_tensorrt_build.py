"""Building the library for TensorRT beside the one for ONNX Runtime: what is found, missing, or fails."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import onnxruntime as ort
import pytest
from click.testing import CliRunner, Result

from robust_export import native
from robust_export.cli import cli
from robust_export.doctor import examine
from robust_export.errors import BuildError, InvalidValue
from robust_export.headers import find_headers, find_tensorrt_headers
from robust_export.native.tools import architectures

CMAKE = """
cmake_minimum_required(VERSION 3.20)
project(stand_in LANGUAGES CXX)
if(SPARTA_CUDA AND EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/no-cuda)
  message(FATAL_ERROR "nvcc dislikes this host compiler")
endif()
add_library(sparta_ort MODULE ort.cpp)
target_compile_definitions(sparta_ort PRIVATE CUDA=$<BOOL:${SPARTA_CUDA}>)
if(SPARTA_TRT_INCLUDE)
  add_library(sparta_trt MODULE trt.cpp)
  string(REPLACE ";" " " gpus "${CMAKE_CUDA_ARCHITECTURES}")
  target_compile_definitions(sparta_trt PRIVATE "GPUS=\\"${gpus}\\"")
endif()
"""
ORT = """
extern "C" void* RegisterCustomOps(void*, const void*) { return nullptr; }
extern "C" const char* sparta_instructions() { return "stand-in"; }
extern "C" int sparta_has_cuda() { return CUDA; }
"""
TRT = 'extern "C" const char* sparta_trt_info() { return "GPUs " GPUS; }\n'

VERSIONS = {
    "10.0": "#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 0 //!< minor\n",
    "8.6": "#define NV_TENSORRT_MAJOR 8 //!< major\n#define NV_TENSORRT_MINOR 6 //!< minor\n",
    "11.1": "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n"
    "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n"
    "#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE //!< minor\n",
}


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


def headers(folder: Path, version: str) -> Path:
    """Write headers that have nothing but a version."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("NvInfer.h", "NvInferRuntime.h"):
        (folder / name).touch()
    (folder / "NvInferVersion.h").write_text(VERSIONS[version])
    return folder


def program(path: Path, *lines: str) -> Path:
    """Write a program that prints lines, whatever it is asked."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + "\n".join(f"echo '{line}'" for line in lines) + "\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache, no TensorRT, no GPU, and an nvcc that compiles nothing."""
    monkeypatch.setenv("ROBUST_EXPORT_CACHE", str(tmp_path / "cache"))
    for name in ("ORT_LIBRARY", "TRT_LIBRARY", "CUDA_ARCHS"):
        monkeypatch.delenv(f"ROBUST_EXPORT_{name}", raising=False)
    monkeypatch.delenv("TENSORRT_INCLUDE_DIR", raising=False)
    monkeypatch.setattr("robust_export.headers.tensorrt.SYSTEM", ())
    monkeypatch.setattr("robust_export.headers.tensorrt.WHEEL", "no_such_wheel")
    monkeypatch.setattr("robust_export.native.tools._gpus_here", set)
    monkeypatch.setenv("CUDACXX", str(program(tmp_path / "bin/nvcc", "compute_75", "compute_90")))
    return tmp_path


@pytest.fixture
def source(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for the kernels' sources, which compile in no time; TensorRT's headers are there."""
    try:
        native.find_tools()
    except BuildError as error:
        pytest.skip(str(error))
    folder = bare / "plugins"
    folder.mkdir()
    for name, text in {"CMakeLists.txt": CMAKE, "ort.cpp": ORT, "trt.cpp": TRT}.items():
        (folder / name).write_text(text)
    monkeypatch.setattr("robust_export.native.building.sources", lambda: folder)
    monkeypatch.setattr("robust_export.native.places.source_digest", lambda: "standin")
    api = bare / "onnxruntime"
    api.mkdir()
    (api / "onnxruntime_cxx_api.h").touch()
    (api / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 18\n")
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE_DIR", str(api))
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(headers(bare / "tensorrt", "10.0")))
    providers(monkeypatch, cuda=True)
    return folder


def providers(monkeypatch: pytest.MonkeyPatch, *, cuda: bool) -> None:
    names = ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)


# --- headers ---


@pytest.mark.parametrize("version", ["10.0", "11.1"])
def test_headers_of_every_spelling_of_a_version(
    bare: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(headers(bare / "given/include", version).parent))
    found = find_tensorrt_headers()
    assert found.path == bare / "given/include"
    assert found.origin.startswith(f"TensorRT {version} in TENSORRT_INCLUDE_DIR")
    before = found.digest
    (found.path / "NvInferRuntime.h").write_text("// another")
    assert find_tensorrt_headers().digest != before


def test_headers_of_the_system_come_before_the_wheel(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = headers(bare / "site/a_wheel/include/tensorrt", "10.0")
    (bare / "site/a_wheel/__init__.py").write_text("raise RuntimeError('this was imported')")
    monkeypatch.syspath_prepend(bare / "site")
    monkeypatch.setattr("robust_export.headers.tensorrt.WHEEL", "a_wheel")
    assert find_tensorrt_headers().path == wheel
    old, new = headers(bare / "old", "8.6"), headers(bare / "new", "11.1")
    monkeypatch.setattr("robust_export.headers.tensorrt.SYSTEM", (str(old), str(new)))
    assert find_tensorrt_headers().path == new
    assert "a_wheel" not in sys.modules


def test_headers_that_are_not_there_or_too_old(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match=r"pip install --no-deps kernel-lens==2\.0\.1"):
        find_tensorrt_headers()
    old = headers(bare / "old", "8.6")
    monkeypatch.setattr("robust_export.headers.tensorrt.SYSTEM", (str(old),))
    with pytest.raises(BuildError, match=r"old has headers of TensorRT 8\.6"):
        find_tensorrt_headers()
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(old))
    with pytest.raises(
        BuildError, match=r"TENSORRT_INCLUDE_DIR is .*old, which has headers of TensorRT 8\.6"
    ):
        find_tensorrt_headers()
    (old / "NvInferRuntime.h").unlink()
    with pytest.raises(BuildError, match=r"has no NvInfer\.h"):
        find_tensorrt_headers()


# --- GPUs ---


def test_gpus_are_those_that_nvcc_knows(bare: Path) -> None:
    listed = [f"compute_{number}" for number in (75, 80, 86, 87, 89, 90, 100, 103, 120, 121)]
    newer = program(bare / "bin/newer", *listed)
    assert architectures(str(newer)) == "75-real;80-real;86-real;89-real;90-real;100-real;120"
    older = program(bare / "bin/older", "compute_70", "compute_75", "compute_80", "compute_90a")
    assert architectures(str(older)) == "75-real;80"
    mute = program(bare / "bin/mute", "unknown option")
    assert architectures(str(mute)) == "75-real;80-real;86-real;89-real;90-real;100-real;120"


def test_gpus_are_this_machines_where_it_has_some(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of `bare`, which hides them
    monkeypatch.setenv("PATH", str(bare / "bin"))
    nvcc = program(bare / "bin/nvcc", "compute_80", "compute_86", "compute_90", "compute_120")
    program(bare / "bin/nvidia-smi", "9.0", "8.6", "9.0")
    assert architectures(str(nvcc)) == "86-real;90"
    program(bare / "bin/nvidia-smi", "12.9")  # newer than nvcc: PTX of the newest serves it
    assert architectures(str(nvcc)) == "80-real;86-real;90-real;120"
    program(bare / "bin/nvidia-smi", "NVIDIA-SMI has failed")
    assert architectures(str(nvcc)) == "80-real;86-real;90-real;120"


@pytest.mark.parametrize(
    ("given", "expected"), [("80", "80"), ("80, 90a-real", "80;90a-real"), ("all-major", "all-major")]
)
def test_gpus_that_are_asked_for(monkeypatch: pytest.MonkeyPatch, given: str, expected: str) -> None:
    monkeypatch.setenv("ROBUST_EXPORT_CUDA_ARCHS", given)
    assert architectures("no-nvcc") == expected


@pytest.mark.parametrize("given", ["sm_80", "8.0", "80;;90", "newest"])
def test_gpus_that_are_none(source: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("ROBUST_EXPORT_CUDA_ARCHS", given)
    with pytest.raises(InvalidValue, match="such as 80;90"):
        architectures("no-nvcc")
    assert run("plugins", "build").exit_code == 2


# --- building ---


def test_both_libraries_are_built_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.trt_library() is None
    assert native.why_no_trt_library().endswith(
        "it is not built; build it with `robust-export plugins build`"
    )
    result = run("plugins", "build", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["libraries"]
    library = native.trt_library()
    assert library is not None
    assert found["tensorrt"] == {
        "path": str(library), "loads": True, "why": None, "info": "GPUs 75-real 90",
        "architectures": "75-real;90",
        "headers": f"TensorRT 10.0 in TENSORRT_INCLUDE_DIR ({source.parent / 'tensorrt'})",
    }  # fmt: skip
    assert found["onnxruntime"]["cuda"] is True
    assert native.ort_library() == library.with_name("libsparta_ort.so")
    made = library.stat().st_mtime_ns
    again = run("plugins", "build")
    assert f"built {library} for GPUs 75-real;90, TensorRT 10.0 in" in again.stderr
    assert library.stat().st_mtime_ns == made
    assert "yes: GPUs 75-real 90" in " ".join(run("plugins", "info").stdout.split())
    monkeypatch.setenv("ROBUST_EXPORT_CUDA_ARCHS", "90")
    assert native.build().tensorrt not in (None, library)
    headers(source.parent / "tensorrt", "11.1")
    assert (
        native.build().tensorrt_headers
        == f"TensorRT 11.1 in TENSORRT_INCLUDE_DIR ({source.parent / 'tensorrt'})"
    )
    assert len(list(library.parent.parent.iterdir())) == 3


def test_tensorrt_needs_no_cuda_provider_of_onnx_runtime(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers(monkeypatch, cuda=False)
    built = native.build()
    assert built.tensorrt is not None
    assert built.without_cuda is built.without_tensorrt is None
    assert built.architectures == "75-real;90"
    assert native.describe()["libraries"]["onnxruntime"]["cuda"] is False


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
    assert "without the kernel for GPUs" not in result.stderr
    assert native.trt_library() is None
    library = native.ort_library()
    assert library is not None
    assert native.describe()["libraries"]["onnxruntime"]["cuda"] is True
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
    assert native.describe()["libraries"]["onnxruntime"]["cuda"] is False
    assert native.trt_library() is None


def test_what_is_missing_is_no_failure(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORRT_INCLUDE_DIR")
    result = run("plugins", "build")
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stderr.splitlines() if "TensorRT" in line]
    assert line.startswith(
        "without the TensorRT plugin: TensorRT's headers, 10.0 or later, are not on this machine"
    )
    assert native.why_no_trt_library() == line.replace("without the", "no")
    monkeypatch.setenv("CUDACXX", "no-nvcc-here")
    result = run("plugins", "build")
    assert result.exit_code == 0, result.output
    assert "without the TensorRT plugin: there is no nvcc" in result.stderr
    assert "there is no nvcc" in native.why_no_trt_library()
    entry = native.describe()["libraries"]["tensorrt"]
    assert entry == {"path": None, "loads": False, "why": native.why_no_trt_library(), "headers": None}


def test_headers_that_are_named_wrong_are_a_failure(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(source))
    result = run("plugins", "build")
    assert result.exit_code == 1
    assert f"TENSORRT_INCLUDE_DIR is {source}" in result.stderr
    assert native.ort_library() is None


# --- a library that is given ---


def test_a_library_that_is_given(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = native.build().tensorrt
    assert built is not None
    own = source.parent / "own.so"
    shutil.copy(built, own)
    monkeypatch.chdir(source.parent)
    monkeypatch.setenv("ROBUST_EXPORT_TRT_LIBRARY", "own.so")
    assert native.trt_library() == own
    entry = native.describe()["libraries"]["tensorrt"]
    assert (entry["path"], entry["loads"], entry["headers"]) == (str(own), True, None)
    own.write_bytes(b"not a library")
    entry = native.describe()["libraries"]["tensorrt"]
    assert entry["loads"] is False
    assert "own.so" in entry["why"]
    own.unlink()
    with pytest.raises(BuildError, match=r"ROBUST_EXPORT_TRT_LIBRARY names own\.so, which is no file"):
        native.trt_library()
    monkeypatch.setenv("ROBUST_EXPORT_TRT_LIBRARY", "")
    assert native.trt_library() is None
    assert "ROBUST_EXPORT_TRT_LIBRARY is set to nothing" in native.why_no_trt_library()


def test_doctor_says_what_tensorrt_needs(source: Path) -> None:
    checks = {check.name: check for check in examine()}
    assert checks["nvcc"].status == "ok"
    assert checks["TensorRT's headers"].found.startswith("TensorRT 10.0 in")
    assert checks["TensorRT plugin"].status == "optional"
    assert "plugins build" in checks["TensorRT plugin"].advice
    assert checks["TensorRT"].status in ("ok", "optional")
    library = native.build().tensorrt
    assert {check.name: check for check in examine()}["TensorRT plugin"].found == str(library)


# --- the real one ---


def test_the_real_plugin_is_built_and_opens(built: Path, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of `bare`: this machine as it is
    if native.find_nvcc() is None:
        pytest.skip("there is no nvcc")
    try:
        found = find_tensorrt_headers()
    except BuildError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE_DIR", str(find_headers(native.cache() / "headers").path))
    monkeypatch.setenv("ROBUST_EXPORT_CACHE", str(bare / "real"))
    monkeypatch.delenv("ROBUST_EXPORT_ORT_LIBRARY", raising=False)
    monkeypatch.setenv("ROBUST_EXPORT_CUDA_ARCHS", "80-real")
    result = run("plugins", "build", "--json")
    assert result.exit_code == 0, result.output
    entry = json.loads(result.stdout)["libraries"]["tensorrt"]
    assert entry["loads"] is True, entry
    assert entry["path"] == str(native.trt_library())
    assert entry["headers"] == found.origin
    assert entry["info"].startswith(found.origin.split(" in ")[0] + " headers, CUDA ")
    assert entry["info"].endswith("GPUs 80-real")
