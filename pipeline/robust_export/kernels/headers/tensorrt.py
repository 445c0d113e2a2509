"""TensorRT's C++ headers, which its Python packages do not have.

They are looked for where TENSORRT_INCLUDE_DIR says, in the system's include folders, and in the wheel
kernel-lens, whose Python is not run. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from robust_export.errors import BuildError
from robust_export.kernels.headers.folder import Headers

GIVEN = "TENSORRT_INCLUDE_DIR"
NEEDED = ("NvInfer.h", "NvInferRuntime.h", "NvInferVersion.h")
OLDEST = (10, 0)  # has IPluginV3
SYSTEM = (
    "/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu", "/usr/include", "/usr/local/include",
    "/usr/local/tensorrt/include", "/opt/tensorrt/include", "/usr/src/tensorrt/include",
)  # fmt: skip
WHEEL = "kernel_lens"
HOW = "`pip install --no-deps kernel-lens==2.0.1` has them under Apache-2.0, or set TENSORRT_INCLUDE_DIR"


def find_tensorrt_headers() -> Headers:
    """Return TensorRT's headers.

    Raises:
        BuildError: if there are none of version 10.0 or later, saying in one line how to get them.
    """
    given = os.environ.get(GIVEN)
    if given:
        for folder in (Path(given), Path(given) / "include"):
            if _new_enough(folder):
                return _headers(folder.absolute(), f"{GIVEN} ({folder.absolute()})")
        raise BuildError(f"{GIVEN} is {given}, which has {_what(Path(given))}; expected 10.0 or later's")
    for name in SYSTEM:
        if _new_enough(Path(name)):
            return _headers(Path(name), name)
    for folder in _wheel():
        if _new_enough(folder):
            return _headers(folder, "the wheel kernel-lens")
    old = next((name for name in SYSTEM if tensorrt_version(Path(name))), None)
    but = f" ({old} has {_what(Path(old))})" if old else ""
    raise BuildError(f"TensorRT's headers, 10.0 or later, are not on this machine{but}: {HOW}")


def tensorrt_version(folder: Path) -> tuple[int, int] | None:
    """Return the version of TensorRT whose headers are in the folder, None where they are not."""
    if not all((folder / name).is_file() for name in NEEDED):
        return None
    text = (folder / "NvInferVersion.h").read_text("utf-8", "replace")
    numbers = []
    for part in ("MAJOR", "MINOR"):  # newer headers define the first name by the second
        found = re.search(rf"#define (?:NV_TENSORRT_{part}|TRT_{part}_ENTERPRISE)\s+(\d+)", text)
        if found is None:
            return None
        numbers.append(int(found[1]))
    return numbers[0], numbers[1]


def _headers(folder: Path, origin: str) -> Headers:
    major, minor = tensorrt_version(folder) or OLDEST
    return Headers(folder, f"TensorRT {major}.{minor} in {origin}", "NvInfer*.h")


def _new_enough(folder: Path) -> bool:
    return (tensorrt_version(folder) or (0, 0)) >= OLDEST


def _what(folder: Path) -> str:
    version = tensorrt_version(folder)
    return f"headers of TensorRT {version[0]}.{version[1]}" if version else "no NvInfer.h with its kin"


def _wheel() -> list[Path]:
    """Return the wheel's folder of headers, found without importing it."""
    spec = importlib.util.find_spec(WHEEL)
    return [Path(root) / "include/tensorrt" for root in (spec and spec.submodule_search_locations) or []]
