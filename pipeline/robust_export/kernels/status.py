"""The state of the native libraries on this machine, for `plugins info` and `doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robust_export.errors import BuildError
from robust_export.kernels.building import BUILD_INFO
from robust_export.kernels.headers.tensorrt import find_tensorrt_headers
from robust_export.kernels.libraries import (
    ort_features,
    ort_library,
    ort_load_error,
    trt_library,
    trt_library_info,
    why_no_ort_library,
    why_no_trt_library,
)
from robust_export.kernels.paths import cache_folder
from robust_export.kernels.toolchain import find_tools


def describe() -> dict[str, Any]:
    """Return the libraries, the tools and the cache folder as `plugins info --json` prints them."""
    try:
        tools: dict[str, Any] | None = asdict(find_tools())
    except BuildError:
        tools = None
    libraries = {"onnxruntime": _describe_ort_library(), "tensorrt": _describe_trt_library()}
    return {"libraries": libraries, "tools": tools, "cache": str(cache_folder())}


def _describe_ort_library() -> dict[str, Any]:
    library = ort_library()
    if library is None:
        return {"path": None, "loads": False, "why": why_no_ort_library()}
    error = ort_load_error(library)
    entry: dict[str, Any] = {"path": str(library), "loads": error is None, "why": error}
    return entry if error else entry | ort_features(library)


def _describe_trt_library() -> dict[str, Any]:
    library = trt_library()
    if library is None:
        try:
            headers = find_tensorrt_headers().origin  # those that a build would use
        except BuildError:
            headers = None
        return {"path": None, "loads": False, "why": why_no_trt_library(), "headers": headers}
    entry: dict[str, Any] = {"path": str(library), "loads": True, "why": None} | _trt_build_info(library)
    try:
        return entry | {"info": trt_library_info(library)}
    except BuildError as error:
        return entry | {"loads": False, "why": str(error)}


def _trt_build_info(library: Path) -> dict[str, Any]:
    """Return the headers and architectures from the build's folder, None each if it has no such file."""
    try:
        info = json.loads((library.parent / BUILD_INFO).read_text())
        return {"headers": info["tensorrt_headers"], "architectures": info["architectures"]}
    except (OSError, ValueError, KeyError):
        return {"headers": None, "architectures": None}
