"""The TensorRT plugin: driven by a program of ours without TensorRT, and loaded by TensorRT for RTX."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robust_export import kernels
from robust_export.errors import BuildError


@pytest.fixture(scope="module")
def headers() -> Path:
    """Return the folder of TensorRT's headers that come with kernel-lens."""
    found = importlib.util.find_spec("kernel_lens")
    places = [Path(root) / "include/tensorrt" for root in (found and found.submodule_search_locations) or []]
    folder = next((place for place in places if (place / "NvInfer.h").is_file()), None)
    if folder is None:
        pytest.skip("there are no TensorRT headers: pip install --no-deps kernel-lens")
    return folder


@pytest.fixture(scope="module")
def nvcc() -> str:
    command = shutil.which("nvcc")
    if command is None:
        pytest.skip("there is no nvcc")
    return command


def build(folder: Path, headers: Path, nvcc: str, sanitize: str = "", plugin: Path | None = None) -> Path:
    """Build the plugin, for one GPU, unless it is given, and what drives it; return their folder."""
    try:
        tools = kernels.find_tools()
    except BuildError as error:
        pytest.skip(str(error))
    options = {
        "SPARTA_TESTS": "ON", "SPARTA_CUDA": "ON", "SPARTA_TRT_INCLUDE": str(headers),
        "SPARTA_SANITIZE": sanitize, "CMAKE_CUDA_COMPILER": nvcc, "CMAKE_CUDA_ARCHITECTURES": "80",
        "CMAKE_CXX_COMPILER": tools.compiler, "CMAKE_CXX_FLAGS": "-Werror",
    }  # fmt: skip
    given = [f"-D{name}={value}" for name, value in options.items()]
    targets = ["nvinfer_stand_in", "tensorrt_test", "tensorrt_registry_test"]
    targets += [] if plugin else ["sparta_trt"]
    for command in (
        [tools.cmake, "-S", str(kernels.sources()), "-B", str(folder), *given],
        [tools.cmake, "--build", str(folder), "--target", *targets],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    if plugin:
        shutil.copy(plugin, folder / "tensorrt")
    return folder / "tensorrt"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, headers: Path, nvcc: str) -> Path:
    """The folder with libsparta_trt.so as users have it: the one that is built, if there is one."""
    return build(tmp_path_factory.mktemp("plugin"), headers, nvcc, plugin=kernels.trt_library())


def ctest(folder: Path) -> None:
    program = Path(kernels.find_tools().cmake).with_name("ctest")
    command = [str(program), "--test-dir", str(folder), "--output-on-failure"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert "100% tests passed" in ran.stdout


def test_the_plugin_does_what_tensorrt_asks(plain: Path) -> None:
    """Fields, formats, shapes, copies, failures, and every order of opening and loading (plugins/tests)."""
    ctest(plain)


def test_the_plugin_touches_only_what_is_its_own(tmp_path: Path, headers: Path, nvcc: str) -> None:
    ctest(build(tmp_path, headers, nvcc, "address,undefined"))


def test_the_plugin_opens_where_there_is_no_tensorrt(plain: Path) -> None:
    library = plain / "libsparta_trt.so"
    needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    assert "libnvinfer" not in needed
    assert "libcuda" not in needed
    code = f"import ctypes; f = ctypes.CDLL({str(library)!r}).sparta_trt_info"
    code += "; f.restype = ctypes.c_char_p; print(f().decode())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("TensorRT 10.14 headers, CUDA ")
    assert said.stderr == ""


def test_the_plugin_shows_nothing_but_its_entries(plain: Path) -> None:
    command = ["nm", "--dynamic", "--defined-only", "--format=posix", str(plain / "libsparta_trt.so")]
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
def test_tensorrt_for_rtx_has_each_plugin_once(plain: Path, order: str) -> None:
    """Opened, as a server opens it, or loaded; what is wrong reaches TensorRT's own logger."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    command = [sys.executable, "-c", RTX, str(plain / "libsparta_trt.so"), order]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    steps = len(order.split())
    assert lines[:steps] == ["['Sparta', 'SpartaAdd']"] * steps
    assert lines[steps] == (
        "error: Sparta's plugin: the node: the field channels is of TensorRT's field type 6, "
        "length 1; expected one int32 or int64"
    )
    assert lines[-1] == "None"
