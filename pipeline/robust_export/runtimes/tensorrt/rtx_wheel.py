"""Cures a fault of TensorRT for RTX's wheel, before it can end the process.

Its ONNX parser opens `libtensorrt_rtx.so` beside itself, where only `libtensorrt_rtx.so.1` is; the first
plugin of a network then ends the process (std::terminate). The parser looks in the folder that it was opened
from: so it is opened through a folder of our cache that links to both, before anything else opens it. Where
it was open already that does not help, which is found out and said.
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
from robust_export.kernels.paths import cache

RTX_LIBRARY = "libtensorrt_rtx.so"  # the name that the parser asks for
RTX_PARSER = "libtensorrt_onnxparser_rtx.so.1"
ORIGIN = 6  # RTLD_DI_ORIGIN: the folder that a library was opened from


def spec(module: str) -> Any:
    """Return where a module would come from, None where it is not installed; it is not imported."""
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None


def open_parser() -> None:
    """Open the parser through links of both names, unless the wheel has both or somebody was quicker."""
    found = spec("tensorrt_rtx_libs")
    if sys.platform != "linux" or found is None or not found.origin or "tensorrt_rtx_libs" in sys.modules:
        return
    wheel = Path(found.origin).parent
    library = wheel / f"{RTX_LIBRARY}.1"
    if (wheel / RTX_LIBRARY).exists() or not library.is_file() or not (wheel / RTX_PARSER).is_file():
        return
    folder = cache() / f"tensorrt_rtx-{hashlib.sha256(str(wheel).encode()).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, target in ((RTX_LIBRARY, library), (RTX_PARSER, wheel / RTX_PARSER)):
            _link(folder / name, target)
        ctypes.CDLL(str(library))
        ctypes.CDLL(str(folder / RTX_PARSER))
    except OSError:
        return  # `check_parser` says what it means


def _link(link: Path, target: Path) -> None:
    """Make a link, whole at every moment, unless it is there."""
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def check_parser() -> None:
    """Raise ArtifactError if the parser would not find its library, and so end the process."""
    if sys.platform != "linux":
        return
    place = ctypes.create_string_buffer(4096)
    try:
        parser = ctypes.CDLL(RTX_PARSER, mode=os.RTLD_NOLOAD)
        dlinfo = ctypes.CDLL(None).dlinfo
        dlinfo.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
        known = dlinfo(parser._handle, ORIGIN, place) == 0
    except (OSError, AttributeError):  # a parser of another name: a version that we do not know
        known = False
    folder = Path(os.fsdecode(place.value))
    if known and (folder / RTX_LIBRARY).exists():
        return
    try:
        ctypes.CDLL(RTX_LIBRARY)
    except OSError:
        raise ArtifactError(
            f"TensorRT for RTX's ONNX parser looks for {RTX_LIBRARY}, which is not in {folder}: a plugin "
            "would end this process. Either tensorrt_rtx was imported before robust-export could mend it "
            f"(call robust_export.runtimes.tensorrt.find first), or {cache()} cannot be written (set "
            f"ROBUST_EXPORT_CACHE); or make a link by hand: ln -s {RTX_LIBRARY}.1 {folder / RTX_LIBRARY}"
        ) from None
