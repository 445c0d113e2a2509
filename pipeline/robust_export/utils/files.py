"""Atomic writes and digests of files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from robust_export.errors import RobustExportError


def write_atomically(path: str | Path, content: bytes | str) -> Path:
    """Write `content` to `path` atomically: a crash, a kill or a full disk leaves the old file intact.

    The content is written to a temporary file in the same folder, fsynced, and renamed to `path`.

    Raises:
        RobustExportError: if it cannot be written; the old file is unchanged.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RobustExportError(
            f"could not write {path} ({len(data):,} bytes): {error.strerror or error}\n"
            "The previous file, if any, is unchanged. Free some space or choose another folder with --out, "
            "then run the command again (train with --resume)."
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically; raise ValueError for NaN and infinities."""
    return write_atomically(path, to_json(value))


def to_json(value: Any) -> str:
    """Return `value` as indented JSON; raise ValueError for NaN and infinities."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def sha256(path: str | Path) -> str:
    """Return the file's SHA-256 as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(new: Path, target: Path) -> None:
    """Replace the folder `target` by `new`; at any moment a complete copy of one of the two is on disk."""
    retired = target.with_name(f".{target.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if target.exists():
        os.replace(target, retired)
    try:
        os.replace(new, target)
    except OSError:
        if retired.exists():
            os.replace(retired, target)
        raise
    _sync_folder(target.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Fsync `folder`, so that a rename in it survives a power cut (on POSIX: others cannot open folders)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
