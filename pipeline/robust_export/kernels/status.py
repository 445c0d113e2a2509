"""What there is of the compiled kernels on this machine, in words and JSON."""

from __future__ import annotations

import ctypes
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robust_export.errors import BuildError
from robust_export.kernels.headers.tensorrt import find_tensorrt_headers
from robust_export.kernels.libraries import (
    load_problem,
    open_trt_library,
    ort_library,
    trt_library,
    why_no_library,
    why_no_trt_library,
)
from robust_export.kernels.paths import cache
from robust_export.kernels.toolchain import find_tools


def describe() -> dict[str, Any]:
    """Return what was found, built and loaded, as `plugins info --json` prints it."""
    try:
        tools: dict[str, Any] | None = asdict(find_tools())
    except BuildError:
        tools = None
    libraries = {"onnxruntime": _onnxruntime(), "tensorrt": _tensorrt()}
    return {"libraries": libraries, "tools": tools, "cache": str(cache())}


def _onnxruntime() -> dict[str, Any]:
    library = ort_library()
    if library is None:
        return {"path": None, "loads": False, "why": why_no_library()}
    problem = load_problem(library)
    entry: dict[str, Any] = {"path": str(library), "loads": problem is None, "why": problem}
    return entry if problem else entry | _what_it_has(library)


def _what_it_has(library: Path) -> dict[str, Any]:
    """Return what the library's kernels use on this CPU, and whether it has one for GPUs."""
    try:
        handle = ctypes.CDLL(str(library))
        handle.sparta_instructions.restype = ctypes.c_char_p
        instructions = handle.sparta_instructions().decode()
        return {"instructions": instructions, "cuda": bool(handle.sparta_has_cuda())}
    except (OSError, AttributeError):
        return {}  # another library than ours


def ort_has_cuda() -> bool:
    """Return whether the library for ONNX Runtime has a kernel for its CUDA provider."""
    library = ort_library()
    return library is not None and bool(_what_it_has(library).get("cuda"))


def _tensorrt() -> dict[str, Any]:
    library = trt_library()
    if library is None:
        try:
            headers = find_tensorrt_headers().origin  # that a build would take
        except BuildError:
            headers = None
        return {"path": None, "loads": False, "why": why_no_trt_library(), "headers": headers}
    entry: dict[str, Any] = {"path": str(library), "loads": True, "why": None} | _made_with(library)
    try:
        return entry | {"info": open_trt_library(library)}
    except BuildError as error:
        return entry | {"loads": False, "why": str(error)}


def _made_with(library: Path) -> dict[str, Any]:
    """Return what the library was built with; nothing is known of one that was given."""
    try:
        facts = json.loads((library.parent / "build.json").read_text())
        return {"headers": facts["tensorrt_headers"], "architectures": facts["architectures"]}
    except (OSError, ValueError, KeyError):
        return {"headers": None, "architectures": None}
