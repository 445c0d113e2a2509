"""The folders of the kernels' sources and of their builds."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

import platformdirs

from robust_export.errors import BuildError

ORT_LIBRARY, TRT_LIBRARY = "libsparta_ort.so", "libsparta_trt.so"
KERNEL_SIZES = (1, 3, 5, 7)
BUILD_HINT = "build it with `robust-export plugins build`"


def cache_folder() -> Path:
    """Return the folder for builds and downloads: ROBUST_EXPORT_CACHE, or one in the user's cache."""
    value = os.environ.get("ROBUST_EXPORT_CACHE")
    folder = Path(value).expanduser() if value else Path(platformdirs.user_cache_dir("robust-export"))
    return folder.absolute()


def source_folder() -> Path:
    """Return the folder of the kernels' sources: plugins/ of the checkout, or its copy in the wheel.

    Raises:
        BuildError: if neither exists.
    """
    package = Path(__file__).parent.parent
    for folder in (package.parent.parent / "plugins", package / "plugins"):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    raise BuildError(f"this installation has no kernel sources (plugins/) beside {package}; reinstall it")


def build_folder(tag: str) -> Path:
    """Return the folder of the build with tool digest `tag`; "*" gives the glob pattern of all builds."""
    return cache_folder() / "plugins" / f"{source_digest()}-{platform.machine()}-{tag}"


@functools.cache
def source_digest() -> str:
    """Return 12 hexadecimal digits of the SHA-256 of the sources of both libraries."""
    root = source_folder()
    files = [root / "CMakeLists.txt"]
    for name in ("core", "onnxruntime", "tensorrt", "training"):
        files += sorted(path for path in (root / name).iterdir() if path.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
