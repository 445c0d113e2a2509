"""Atomic writes, JSON, digests and replacing folders."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_export.errors import RobustExportError
from robust_export.utils.files import replace_folder, sha256, write_atomically, write_json

posix = pytest.mark.skipif(os.name != "posix", reason="signals and resource limits are POSIX")


def failing(code: int) -> Callable[..., Any]:
    """Return a function that fails as a system call does, with an error number."""

    def call(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 1000, "grüße\n", ""])
def test_write_content(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    assert write_atomically(path, content) == path
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


def test_write_to_string_path(tmp_path: Path) -> None:
    assert write_atomically(str(tmp_path / "x"), "y") == tmp_path / "x"


def test_write_replaces_longer_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old" * 1000)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


@posix
def test_written_file_is_readable_by_others(tmp_path: Path) -> None:
    """Temporary files are private, but a server that runs as another user must read the result."""
    path = write_atomically(tmp_path / "file", "x")
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    ("call", "code"),
    [("fsync", errno.ENOSPC), ("fsync", errno.EIO), ("replace", errno.EACCES), ("chmod", errno.EPERM)],
)
def test_failed_write_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, exists: bool
) -> None:
    path = tmp_path / "model.onnx"
    if exists:
        path.write_bytes(b"old")
    monkeypatch.setattr(os, call, failing(code))
    with pytest.raises(RobustExportError) as caught:
        write_atomically(path, b"new content")
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == (
        [("model.onnx", b"old")] if exists else []
    )


def test_write_to_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write itself fails halfway, not the fsync."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    real = os.fdopen

    def fdopen(handle: int, mode: str) -> Any:
        file = real(handle, mode, buffering=0)

        class Full:
            def __enter__(self) -> Full:
                return self

            def __exit__(self, *error: object) -> None:
                file.close()

            def write(self, data: bytes) -> int:
                file.write(data[:3])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Full()

    monkeypatch.setattr(os, "fdopen", fdopen)
    with pytest.raises(RobustExportError, match="No space left"):
        write_atomically(path, b"new content")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(RobustExportError, match="file"):
        write_atomically(tmp_path / "file" / "below", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_path_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RobustExportError, match="folder"):
        write_atomically(tmp_path / "folder", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@posix
def test_write_beyond_file_size_limit(tmp_path: Path) -> None:
    """The kernel refuses to write beyond the limit, as with a full disk or a quota."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    result = run(
        """
import resource, signal, sys
from robust_export.errors import RobustExportError
from robust_export.utils.files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    write_atomically(sys.argv[1], b"x" * 1_000_000)
except RobustExportError as error:
    print(error)
    sys.exit(7)
""",
        path,
    )
    assert result.returncode == 7, result.stderr
    assert str(path) in result.stdout
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


@posix
@pytest.mark.parametrize("moment", ["fsync", "chmod", "replace"])
def test_killed_process_leaves_old_file(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    result = run(
        """
import os, signal, sys
from robust_export.utils.files import write_atomically
setattr(os, sys.argv[2], lambda *args: os.kill(os.getpid(), signal.SIGKILL))
write_atomically(sys.argv[1], b"x" * 1_000_000)
""",
        path,
        moment,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")  # the leftover temporary file does not matter
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [1.0, float("-inf")]}])
def test_write_json_refuses_nan_and_infinity(tmp_path: Path, value: object) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, value)
    assert path.read_text() == "{}"


def test_write_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 0.1, None, True], "a": "ü"}
    text = write_json(tmp_path / "x.json", value).read_text("utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")
    assert list(json.loads(text)) == ["b", "a"]  # order kept


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_sha256_equals_hashlib(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "digest.bin"
    path.write_bytes(content)
    assert sha256(path) == sha256(str(path)) == hashlib.sha256(content).hexdigest()


def folder_of(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("leftover", [True, False])
def test_replace_folder(tmp_path: Path, exists: bool, leftover: bool) -> None:
    """Also with the leftover of an earlier call that was killed."""
    new, target = folder_of(tmp_path / "new", "new"), tmp_path / "demo"
    if exists:
        folder_of(target, "old")
        (target / "only-in-old").touch()
    if leftover:
        folder_of(tmp_path / ".demo.old", "older")
    replace_folder(new, target)
    assert {entry.name for entry in tmp_path.iterdir()} == {"demo"}
    assert {entry.name for entry in target.iterdir()} == {"file"}
    assert (target / "file").read_text() == "new"


@pytest.mark.parametrize("failing_rename", [1, 2])
def test_replace_folder_restores_target_on_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_rename: int
) -> None:
    """The first rename moves the old folder away, the second moves the new one in."""
    new, target = folder_of(tmp_path / "new", "new"), folder_of(tmp_path / "demo", "old")
    calls, real = [0], os.replace

    def replace(source: Path, destination: Path) -> None:
        calls[0] += 1
        if calls[0] == failing_rename:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        real(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises((OSError, RobustExportError)):
        replace_folder(new, target)
    assert (target / "file").read_text() == "old"
    assert (new / "file").read_text() == "new"
