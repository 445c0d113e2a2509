"""The libraries that are built or given: where they are, why there is none, whether they load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from robust_export.errors import BuildError, reason
from robust_export.kernels.headers.tensorrt import find_tensorrt_headers
from robust_export.kernels.paths import HOW, ORT_LIBRARY, TRT_LIBRARY, build_folder
from robust_export.kernels.toolchain import NO_NVCC, find_tools

OPEN = """
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
"""Opens a library and prints what it says of itself."""


def ort_library() -> Path | None:
    """Return the library with ai.sparta::Sparta for ONNX Runtime, None where none is built.

    Raises:
        BuildError: if ROBUST_EXPORT_ORT_LIBRARY names a file that is not there.
    """
    return _library("ROBUST_EXPORT_ORT_LIBRARY", ORT_LIBRARY)


def trt_library() -> Path | None:
    """Return the library with the plugins Sparta and SpartaAdd for TensorRT, None where none is built.

    Raises:
        BuildError: if ROBUST_EXPORT_TRT_LIBRARY names a file that is not there.
    """
    return _library("ROBUST_EXPORT_TRT_LIBRARY", TRT_LIBRARY)


def _library(variable: str, name: str) -> Path | None:
    given = os.environ.get(variable)
    if given is not None:
        if given and not Path(given).is_file():
            raise BuildError(f"{variable} names {given}, which is no file; unset it, or {HOW}")
        return Path(given).absolute() if given else None
    try:
        pattern = build_folder("*")
    except BuildError:
        return None
    found = sorted(pattern.parent.glob(f"{pattern.name}/{name}"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def why_no_library() -> str:
    """Return, in one line, why there is no library for ONNX Runtime and how to get it."""
    if os.environ.get("ROBUST_EXPORT_ORT_LIBRARY") == "":
        return "no fused kernel: ROBUST_EXPORT_ORT_LIBRARY is set to nothing"
    try:
        find_tools()
    except BuildError as error:
        return f"no fused kernel: {error}"
    return f"no fused kernel: it is not built; {HOW}"


def why_no_trt_library() -> str:
    """Return, in one line, why there is no library for TensorRT and how to get it."""
    if os.environ.get("ROBUST_EXPORT_TRT_LIBRARY") == "":
        return "no TensorRT plugin: ROBUST_EXPORT_TRT_LIBRARY is set to nothing"
    try:
        if find_tools().nvcc is None:
            return f"no TensorRT plugin: {NO_NVCC}"
        find_tensorrt_headers()
    except BuildError as error:
        return f"no TensorRT plugin: {error}"
    return f"no TensorRT plugin: it is not built; {HOW}"


def load_problem(library: Path) -> str | None:
    """Return what ONNX Runtime says against the library, None if it registers it."""
    import onnxruntime

    try:
        onnxruntime.SessionOptions().register_custom_ops_library(str(library))
    except Exception as error:  # ONNX Runtime's exceptions have no common public base
        return reason(error)
    return None


def open_trt_library(library: Path) -> str | None:
    """Return what the plugin says it was built with, None for another library than ours.

    It is opened in a process of its own, which a broken library cannot take ours down with.

    Raises:
        BuildError: if it does not open, with what the loader says.
    """
    command = [sys.executable, "-I", "-c", OPEN, str(library)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"opening {library} did not end within two minutes") from error
    if ran.returncode < 0:
        raise BuildError(f"opening {library} ended in {signal.Signals(-ran.returncode).name}")
    if ran.returncode or not ran.stdout.strip():
        lines = ran.stderr.strip().splitlines()
        raise BuildError(lines[-1] if lines else f"opening {library} ended with code {ran.returncode}")
    said: str | None = json.loads(ran.stdout.splitlines()[-1])
    return said
