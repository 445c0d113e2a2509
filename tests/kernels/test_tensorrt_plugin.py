"""The TensorRT plugin: called by test programs without TensorRT, and loaded by TensorRT for RTX."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robust_export.kernels.headers import tensorrt
from robust_export.kernels.libraries import trt_library
from robust_export.kernels.paths import source_folder
from tests.kernels.build_cache import build_once
from tests.kernels.compiling import cmake_build, ctest, cuda_include, run_command, tools_or_skip

PROGRAMS = (
    "nvinfer_stand_in", "slots_stand_in", "tensorrt_test", "tensorrt_registry_test", "tensorrt_slots_test",
    "tensorrt_versions_test",
)  # fmt: skip


@pytest.fixture(scope="module")
def headers() -> Path:
    """Return the folder of TensorRT's headers in the wheel kernel-lens."""
    folder = next((folder for folder in tensorrt.wheel_folders() if (folder / "NvInfer.h").is_file()), None)
    if folder is None:
        pytest.skip("there are no TensorRT headers: pip install --no-deps kernel-lens")
    return folder


@pytest.fixture(scope="module")
def nvcc() -> str:
    command = shutil.which("nvcc")
    if command is None:
        pytest.skip("there is no nvcc")
    return command


def build(headers: Path, nvcc: str, sanitizers: str = "") -> Path:
    """Return the build tree of the test programs and of the plugin, from the cache.

    Without sanitizers the plugin is the user's build if there is one. Otherwise it has only PTX, which
    compiles faster and suffices, because nothing is launched.
    """
    library = None if sanitizers else trt_library()
    options = {
        "SPARTA_CUDA": "ON", "SPARTA_TRT_INCLUDE": str(headers), "SPARTA_SANITIZE": sanitizers,
        "CMAKE_CUDA_COMPILER": nvcc, "CMAKE_CUDA_ARCHITECTURES": "80-virtual",
    }  # fmt: skip
    name = "tensorrt-sanitized" if sanitizers else "tensorrt"
    if library is None:
        return cmake_build(name, options, "sparta_trt", *PROGRAMS)
    return cmake_build(name, options, *PROGRAMS, files={"tensorrt/libsparta_trt.so": library})


@pytest.fixture(scope="module")
def plugin(headers: Path, nvcc: str) -> Path:
    """Return libsparta_trt.so without sanitizers."""
    return build(headers, nvcc) / "tensorrt/libsparta_trt.so"


@pytest.mark.parametrize("sanitizers", ["", "address,undefined"])
def test_programs_pass(headers: Path, nvcc: str, sanitizers: str) -> None:
    """Fields, formats, shapes, clones, errors, every order of opening and loading, every TensorRT version."""
    ctest(build(headers, nvcc, sanitizers), "tensorrt")


def header_folders() -> list[Path]:
    """Return every folder with TensorRT's headers on this machine."""
    requested = [os.environ[tensorrt.VARIABLE]] if os.environ.get(tensorrt.VARIABLE) else []
    folders = [*map(Path, requested), *map(Path, tensorrt.SYSTEM), *tensorrt.wheel_folders()]
    versions = {folder: tensorrt.tensorrt_version(folder) for folder in folders}
    return [folder for folder, version in versions.items() if version and version >= tensorrt.MIN_VERSION]


@pytest.mark.parametrize("folder", header_folders(), ids=str)
def test_vtable_slots_match_the_headers(folder: Path) -> None:
    """The slots in tensorrt/vtable_slots.h, for each TensorRT version whose headers are installed."""
    include, tools, source = cuda_include(), tools_or_skip(), source_folder()
    if not include:
        pytest.skip("there are no CUDA headers, which TensorRT's need")

    def compile_test(output: Path) -> None:
        command = [tools.compiler, "-std=c++17", "-w", "-isystem", str(folder), "-isystem", include]
        run_command([*command, str(source / "tests/tensorrt_slots_test.cpp"), "-o", str(output / "test")])

    files = [source / "tensorrt/vtable_slots.h", source / "tests/tensorrt_slots_test.cpp"]
    inputs: list[str | Path] = [tools.version, *files, folder]
    output = run_command([str(build_once("tensorrt-slots", inputs, compile_test) / "test")])
    version = tensorrt.tensorrt_version(folder)
    assert version is not None
    assert output.startswith(f"ok: TensorRT {version[0] * 100 + version[1]}")


def test_opens_without_tensorrt(plugin: Path) -> None:
    needed = subprocess.run(["ldd", plugin], capture_output=True, text=True, check=True).stdout
    assert "libnvinfer" not in needed
    assert "libcuda" not in needed
    code = f"import ctypes; f = ctypes.CDLL({str(plugin)!r}).sparta_trt_info"
    code += "; f.restype = ctypes.c_char_p; print(f().decode())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("TensorRT 10.14 headers, CUDA ")
    assert result.stderr == ""


def test_exports_only_its_entry_points(plugin: Path) -> None:
    command = ["nm", "--dynamic", "--defined-only", "--format=posix", str(plugin)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {line.split()[0] for line in listed.splitlines()}
    assert names == {"getCreators", "setLoggerFinder", "sparta_trt_info", "sparta_trt_last_error"}


RTX = """
import ctypes, sys
import tensorrt_rtx as trt

class Logger(trt.ILogger):
    def log(self, severity, message):
        if severity <= trt.ILogger.ERROR:
            print("error:", message)

logger = Logger()
builder = trt.Builder(logger)  # from here on TensorRT has a logger
registry = trt.get_plugin_registry()
for step in sys.argv[2].split():
    if step == "open":
        ctypes.CDLL(sys.argv[1])
    else:
        assert registry.load_library(sys.argv[1]) is not None
    print(sorted(creator.name for creator in registry.all_creators if "Sparta" in creator.name))
field = trt.PluginField("channels", memoryview(b"4"), trt.PluginFieldType.CHAR)
creator = registry.get_creator("SpartaAdd", "1", "")
print(creator.create_plugin("the node", trt.PluginFieldCollection([field]), trt.TensorRTPhase.BUILD))
"""


@pytest.mark.parametrize("order", ["open", "load", "open load", "load open", "open open"])
def test_rtx_registers_each_plugin_once(plugin: Path, order: str) -> None:
    """The library is opened, as a server does it, or loaded; errors go to TensorRT's logger."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    command = [sys.executable, "-c", RTX, str(plugin), order]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    steps = len(order.split())
    assert lines[:steps] == ["['Sparta', 'SpartaAdd']"] * steps
    assert lines[steps] == (
        "error: Sparta's plugin: the node: the field channels is of TensorRT's field type 6, "
        "length 1; expected one int32 or int64"
    )
    assert lines[-1] == "None"
