"""Work around a packaging fault of the tensorrt_rtx wheel that would end the process.

Its ONNX parser opens `libtensorrt_rtx.so` from the folder that the parser itself was opened from, but the
wheel has only `libtensorrt_rtx.so.1`; the first plugin of a network then calls std::terminate. `open_parser`
opens the parser through a cache folder that links to both names, before anything else opens it.
`check_parser` raises an error where that was too late or impossible.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from robust_export.errors import ArtifactError

RTX_LIBRARY = "libtensorrt_rtx.so"  # the name that the parser opens
RTX_PARSER = "libtensorrt_onnxparser_rtx.so.1"
RTLD_DI_ORIGIN = 6  # dlinfo: the folder that a library was opened from (glibc's dlfcn.h)


def find_spec(module: str) -> Any:
    """Return a module's import spec without importing it, None if it is not installed."""
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None


def open_parser(cache: Path) -> None:
    """Open the parser through links to both names, unless the wheel has both or is imported already.

    Args:
        cache: the folder to create the folder of links in.
    """
    spec = find_spec("tensorrt_rtx_libs")
    if sys.platform != "linux" or spec is None or not spec.origin or "tensorrt_rtx_libs" in sys.modules:
        return
    wheel = Path(spec.origin).parent
    library = wheel / f"{RTX_LIBRARY}.1"
    if (wheel / RTX_LIBRARY).exists() or not library.is_file() or not (wheel / RTX_PARSER).is_file():
        return
    folder = cache / f"tensorrt_rtx-{hashlib.sha256(str(wheel).encode()).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, target in ((RTX_LIBRARY, library), (RTX_PARSER, wheel / RTX_PARSER)):
            _link(folder / name, target)
        ctypes.CDLL(str(library))
        ctypes.CDLL(str(folder / RTX_PARSER))
    except OSError:
        return  # `check_parser` reports it


def _link(link: Path, target: Path) -> None:
    """Create a symbolic link atomically, unless it exists."""
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def check_parser(cache: Path) -> None:
    """Raise ArtifactError if the parser would not find its library and so end the process."""
    if sys.platform != "linux":
        return
    origin = ctypes.create_string_buffer(4096)
    try:
        parser = ctypes.CDLL(RTX_PARSER, mode=os.RTLD_NOLOAD)
        dlinfo = ctypes.CDLL(None).dlinfo
        dlinfo.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
        known = dlinfo(parser._handle, RTLD_DI_ORIGIN, origin) == 0
    except (OSError, AttributeError):  # another version, whose parser has another name
        known = False
    folder = Path(os.fsdecode(origin.value))
    if known and (folder / RTX_LIBRARY).exists():
        return
    try:
        ctypes.CDLL(RTX_LIBRARY)
    except OSError:
        raise ArtifactError(
            f"TensorRT for RTX's ONNX parser looks for {RTX_LIBRARY}, which is not in {folder}; using a "
            "plugin would end this process. Either tensorrt_rtx was imported before robust-export could "
            "prepare it (call robust_export.runtimes.tensorrt.variants.load_variant first), or "
            f"{cache} cannot be written (set ROBUST_EXPORT_CACHE). Or create the link yourself: "
            f"ln -s {RTX_LIBRARY}.1 {folder / RTX_LIBRARY}"
        ) from None
