"""A cache of compiled test programs, shared by all xdist workers and by later test runs.

It lies in the user's cache folder, beside robust-export's own. CI starts without it.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import platformdirs
from filelock import FileLock

ROOT = platformdirs.user_cache_path("robust-export-tests")
MAX_AGE = 14 * 24 * 3600  # seconds since an entry was last used


def build_once(name: str, inputs: Iterable[str | Path], build: Callable[[Path], None]) -> Path:
    """Return a folder that build(folder) filled, now or earlier from equal inputs.

    A lock lets one process build while the others wait. `build` runs in the final folder, because a CMake
    build tree cannot be moved; the file `complete` is written last, and a folder without it is built again.

    Args:
        name: a prefix for the folder's name.
        inputs: strings, files and folders whose contents the result depends on.
        build: a function that fills an empty folder.
    """
    folder = ROOT / f"{name}-{_digest(inputs)}"
    complete = folder / "complete"
    ROOT.mkdir(parents=True, exist_ok=True)
    with build_lock(folder):
        if not complete.is_file():
            _remove_old_entries()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
        complete.touch()  # its time is that of the last use
    return folder


def build_lock(folder: Path) -> FileLock:
    """Return the lock of an entry."""
    return FileLock(f"{folder}.lock")


def _digest(inputs: Iterable[str | Path]) -> str:
    digest = hashlib.sha256()
    for item in inputs:
        if isinstance(item, str):
            digest.update(f"{item}\n".encode())
            continue
        for file in sorted(item.rglob("*")) if item.is_dir() else [item]:
            if file.is_file():
                digest.update(f"{file.relative_to(item)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _remove_old_entries() -> None:
    for complete in ROOT.glob("*/complete"):
        if time.time() - complete.stat().st_mtime > MAX_AGE:
            shutil.rmtree(complete.parent, ignore_errors=True)
