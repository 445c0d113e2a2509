"""Where the kernels' sources are, and where builds of them are kept."""

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
HOW = "build it with `robust-export plugins build`"


def cache() -> Path:
    """Return the folder that builds and fetched headers are kept in."""
    given = os.environ.get("ROBUST_EXPORT_CACHE")
    folder = Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("robust-export"))
    return folder.absolute()


def sources() -> Path:
    """Return the folder of the kernels' sources: the checkout's plugins/, or the wheel's copy.

    Raises:
        BuildError: if this installation has neither.
    """
    package = Path(__file__).parent.parent
    for folder in (package.parent.parent / "plugins", package / "plugins"):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    raise BuildError(f"this installation has no kernel sources (plugins/) beside {package}; reinstall it")


def build_folder(tag: str) -> Path:
    """Return the folder of the build whose tools are told by `tag`; "*" for the pattern of all builds."""
    return cache() / "plugins" / f"{source_digest()}-{platform.machine()}-{tag}"


@functools.cache
def source_digest() -> str:
    """Return 12 hexadecimal digits that change with the sources of what is built."""
    folder = sources()
    files = [folder / "CMakeLists.txt"]
    for room in ("core", "onnxruntime", "tensorrt", "training"):
        files += sorted(path for path in (folder / room).iterdir() if path.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
