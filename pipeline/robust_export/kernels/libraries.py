"""Find the native libraries, explain why one is missing, and test whether one loads."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from robust_export.errors import BuildError, reason
from robust_export.kernels.headers.tensorrt import find_tensorrt_headers
from robust_export.kernels.paths import BUILD_HINT, ORT_LIBRARY, TRT_LIBRARY, build_folder
from robust_export.kernels.toolchain import NO_NVCC, find_tools

PRINT_INFO = """
import ctypes, json, sys
try:
    library = ctypes.CDLL(sys.argv[1])
except OSError as error:
    sys.exit(str(error))
info = getattr(library, "sparta_trt_info", None)
if info is not None:
    info.restype = ctypes.c_char_p
    info = info().decode()
print(json.dumps(info))
"""
"""A program that opens a library and prints the result of its sparta_trt_info as JSON."""


def ort_library() -> Path | None:
    """Return the library with ai.sparta::Sparta for ONNX Runtime, None if it is not built.

    Raises:
        BuildError: if ROBUST_EXPORT_ORT_LIBRARY names a file that does not exist.
    """
    return _find_library("ROBUST_EXPORT_ORT_LIBRARY", ORT_LIBRARY)


def trt_library() -> Path | None:
    """Return the library with the plugins Sparta and SpartaAdd for TensorRT, None if it is not built.

    Raises:
        BuildError: if ROBUST_EXPORT_TRT_LIBRARY names a file that does not exist.
    """
    return _find_library("ROBUST_EXPORT_TRT_LIBRARY", TRT_LIBRARY)


def _find_library(variable: str, name: str) -> Path | None:
    """Return the file named by an environment variable, or the newest build of the current sources."""
    requested = os.environ.get(variable)
    if requested is not None:
        if requested and not Path(requested).is_file():
            raise BuildError(f"{variable} names {requested}, which is not a file; unset it, or {BUILD_HINT}")
        return Path(requested).absolute() if requested else None
    try:
        pattern = build_folder("*")
    except BuildError:
        return None
    builds = sorted(pattern.parent.glob(f"{pattern.name}/{name}"), key=lambda path: path.stat().st_mtime)
    return builds[-1] if builds else None


def why_no_ort_library() -> str:
    """Return one line that says why there is no library for ONNX Runtime and how to get it."""
    if os.environ.get("ROBUST_EXPORT_ORT_LIBRARY") == "":
        return "no fused kernel: ROBUST_EXPORT_ORT_LIBRARY is set to an empty string"
    try:
        find_tools()
    except BuildError as error:
        return f"no fused kernel: {error}"
    return f"no fused kernel: it is not built; {BUILD_HINT}"


def why_no_trt_library() -> str:
    """Return one line that says why there is no library for TensorRT and how to get it."""
    if os.environ.get("ROBUST_EXPORT_TRT_LIBRARY") == "":
        return "no TensorRT plugin: ROBUST_EXPORT_TRT_LIBRARY is set to an empty string"
    try:
        if find_tools().nvcc is None:
            return f"no TensorRT plugin: {NO_NVCC}"
        find_tensorrt_headers()
    except BuildError as error:
        return f"no TensorRT plugin: {error}"
    return f"no TensorRT plugin: it is not built; {BUILD_HINT}"


def ort_load_error(library: Path) -> str | None:
    """Register a library with ONNX Runtime. Return its error message, None if it succeeds."""
    import onnxruntime

    try:
        onnxruntime.SessionOptions().register_custom_ops_library(str(library))
    except Exception as error:  # ONNX Runtime's exceptions have no common public base class
        return reason(error)
    return None


def trt_library_info(library: Path) -> str | None:
    """Open a plugin library in a child process, which may crash. Return what it was built with.

    Returns:
        The text of sparta_trt_info, None if the library does not have this function.

    Raises:
        BuildError: if the library does not open, with the loader's message.
    """
    command = [sys.executable, "-I", "-c", PRINT_INFO, str(library)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"opening {library} did not end within two minutes") from error
    if result.returncode < 0:
        raise BuildError(f"opening {library} ended in {signal.Signals(-result.returncode).name}")
    if result.returncode or not result.stdout.strip():
        lines = result.stderr.strip().splitlines()
        raise BuildError(lines[-1] if lines else f"opening {library} ended with code {result.returncode}")
    info: str | None = json.loads(result.stdout.splitlines()[-1])
    return info


def ort_has_cuda() -> bool:
    """Return whether the library for ONNX Runtime has a kernel for its CUDA provider."""
    library = ort_library()
    return library is not None and bool(ort_features(library).get("cuda"))


def ort_features(library: Path) -> dict[str, Any]:
    """Return the CPU instruction set in use and whether there is a CUDA kernel; {} for another library."""
    try:
        handle = ctypes.CDLL(str(library))
        handle.sparta_instructions.restype = ctypes.c_char_p
        instructions = handle.sparta_instructions().decode()
        return {"instructions": instructions, "cuda": bool(handle.sparta_has_cuda())}
    except (OSError, AttributeError):
        return {}
