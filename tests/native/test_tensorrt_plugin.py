"""The TensorRT plugin: driven by a program of ours without TensorRT, and loaded by TensorRT for RTX."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robust_export import native
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


def build(folder: Path, headers: Path, nvcc: str, sanitize: str = "") -> Path:
    """Build the plugin and the program that drives it, for one GPU; return their folder."""
    try:
        tools = native.find_tools()
    except BuildError as error:
        pytest.skip(str(error))
    options = {
        "SPARTA_TESTS": "ON", "SPARTA_CUDA": "ON", "SPARTA_TRT_INCLUDE": str(headers),
        "SPARTA_SANITIZE": sanitize, "CMAKE_CUDA_COMPILER": nvcc, "CMAKE_CUDA_ARCHITECTURES": "80",
        "CMAKE_CXX_COMPILER": tools.compiler, "CMAKE_CXX_FLAGS": "-Werror",
    }  # fmt: skip
    given = [f"-D{name}={value}" for name, value in options.items()]
    for command in (
        [tools.cmake, "-S", str(native.sources()), "-B", str(folder), *given],
        [tools.cmake, "--build", str(folder), "--target", "sparta_trt", "tensorrt_test"],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    return folder


def test_the_plugin_does_what_tensorrt_asks(tmp_path: Path, headers: Path, nvcc: str) -> None:
    """Fields, formats, shapes, copies and failures, under sanitizers: plugins/tests/tensorrt_test.cpp."""
    folder = build(tmp_path, headers, nvcc, "address,undefined") / "tensorrt"
    ran = subprocess.run(
        [folder / "tensorrt_test", folder / "libsparta_trt.so"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]


def test_the_plugin_opens_where_there_is_no_tensorrt(tmp_path: Path, headers: Path, nvcc: str) -> None:
    library = build(tmp_path, headers, nvcc) / "tensorrt" / "libsparta_trt.so"
    needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    assert "libnvinfer" not in needed
    assert "libcuda" not in needed
    code = f"import ctypes; f = ctypes.CDLL({str(library)!r}).sparta_trt_info"
    code += "; f.restype = ctypes.c_char_p; print(f().decode())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("TensorRT 10.14 headers, CUDA ")
    assert said.stderr == ""
