"""Find TensorRT's C++ headers, which its Python packages do not include.

Sources, in this order: TENSORRT_INCLUDE_DIR, the system's include folders, the wheel kernel-lens (whose
Python code is not run). Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from robust_export.errors import BuildError
from robust_export.kernels.headers.folder import Headers

VARIABLE = "TENSORRT_INCLUDE_DIR"
HEADERS = ("NvInfer.h", "NvInferRuntime.h", "NvInferVersion.h")
MIN_VERSION = (10, 0)  # the first with IPluginV3
SYSTEM = (
    "/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu", "/usr/include", "/usr/local/include",
    "/usr/local/tensorrt/include", "/opt/tensorrt/include", "/usr/src/tensorrt/include",
)  # fmt: skip
WHEEL = "kernel_lens"
INSTALL_HINT = (
    "`pip install --no-deps kernel-lens==2.0.1` has them under Apache-2.0, or set TENSORRT_INCLUDE_DIR"
)


def find_tensorrt_headers() -> Headers:
    """Return TensorRT's headers.

    Raises:
        BuildError: if there are none of version 10.0 or later; the one-line message says how to get them.
    """
    requested = os.environ.get(VARIABLE)
    if requested:
        for folder in (Path(requested), Path(requested) / "include"):
            if _new_enough(folder):
                return _headers(folder.absolute(), f"{VARIABLE} ({folder.absolute()})")
        found = _describe(Path(requested))
        raise BuildError(f"{VARIABLE} is {requested}, which has {found}; expected version 10.0 or later")
    for name in SYSTEM:
        if _new_enough(Path(name)):
            return _headers(Path(name), name)
    for folder in wheel_folders():
        if _new_enough(folder):
            return _headers(folder, "the wheel kernel-lens")
    old = next((name for name in SYSTEM if tensorrt_version(Path(name))), None)
    remark = f" ({old} has {_describe(Path(old))})" if old else ""
    raise BuildError(f"TensorRT's headers, 10.0 or later, are not on this machine{remark}: {INSTALL_HINT}")


def tensorrt_version(folder: Path) -> tuple[int, int] | None:
    """Return the version (major, minor) of the headers in a folder, None if they are not there."""
    if not all((folder / name).is_file() for name in HEADERS):
        return None
    text = (folder / "NvInferVersion.h").read_text("utf-8", "replace")
    numbers = []
    for part in ("MAJOR", "MINOR"):  # since TensorRT 11 the first name is defined by the second
        match = re.search(rf"#define (?:NV_TENSORRT_{part}|TRT_{part}_ENTERPRISE)\s+(\d+)", text)
        if match is None:
            return None
        numbers.append(int(match[1]))
    return numbers[0], numbers[1]


def _headers(folder: Path, origin: str) -> Headers:
    major, minor = tensorrt_version(folder) or MIN_VERSION
    return Headers(folder, f"TensorRT {major}.{minor} in {origin}", "NvInfer*.h")


def _new_enough(folder: Path) -> bool:
    return (tensorrt_version(folder) or (0, 0)) >= MIN_VERSION


def _describe(folder: Path) -> str:
    version = tensorrt_version(folder)
    return (
        f"headers of TensorRT {version[0]}.{version[1]}"
        if version
        else "no NvInfer.h, NvInferRuntime.h and NvInferVersion.h"
    )


def wheel_folders() -> list[Path]:
    """Return the folder of headers in the wheel, [] if it is not installed. The package is not imported."""
    spec = importlib.util.find_spec(WHEEL)
    return [Path(root) / "include/tensorrt" for root in (spec and spec.submodule_search_locations) or []]
