"""Writing into a bundle: entries of written files, failed writes, and a process killed during a write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from robust_export import bundle as bundle_module
from robust_export.bundle import MANIFEST, Bundle
from robust_export.errors import BundleError, RobustExportError
from robust_export.utils.files import sha256, write_atomically
from tests.small_bundle import make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "tiny").path


def test_write_lists_new_file(folder: Path) -> None:
    bundle = Bundle.open(folder)
    written = bundle.write({"model.fp16.onnx": b"half"}, "onnx", precision="fp16")
    assert written == [folder / "model.fp16.onnx"]
    assert written[0].read_bytes() == b"half"
    for again in (bundle, Bundle.open(folder)):
        assert again.files("onnx") == ["model.onnx", "model.fp16.onnx"]
        assert again.manifest["files"]["model.fp16.onnx"]["precision"] == "fp16"


def test_write_replaces_file_and_digest(folder: Path) -> None:
    Bundle.open(folder).write({"model.onnx": b"another graph"}, "onnx")
    entry = Bundle.open(folder).manifest["files"]["model.onnx"]
    assert entry == {"sha256": sha256(folder / "model.onnx"), "bytes": 13, "kind": "onnx"}


def test_failed_manifest_write_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / MANIFEST).read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RobustExportError, match=MANIFEST):
        Bundle.open(folder).write({"model.onnx": b"another"}, "other")
    assert (folder / MANIFEST).read_bytes() == before


class Killed(BaseException):
    """Stands in for SIGKILL: no handler catches it."""


@pytest.mark.parametrize("moment", range(8))
def test_bundle_is_valid_after_kill_during_write(
    folder: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before or after each rename."""
    replace, renames = os.replace, 0

    def killed(*paths: Any) -> None:
        nonlocal renames
        if renames == moment:
            raise Killed
        replace(*paths)
        renames += 1
        if renames == moment:
            raise Killed

    bundle = Bundle.open(folder)
    monkeypatch.setattr(os, "replace", killed)
    try:
        bundle.write({"model.onnx": b"another", "empty.json": "{}", "new.json": "[]"}, "onnx", opset=22)
    except Killed:
        finished = False
    else:
        finished = True
    monkeypatch.setattr(os, "replace", replace)
    assert finished == (moment > 5)  # the manifest, three files, the manifest
    opened = Bundle.open(folder)
    for name, old in (("model.onnx", b"graph" * 100), ("empty.json", b"")):
        new = {"model.onnx": b"another", "empty.json": b"{}"}[name]
        content = opened.file(name).read_bytes()
        assert content in (old, new)
        assert ("opset" in opened.manifest["files"][name]) == (content == new)
    opened.write({"later.json": "{}"}, "report")  # it can be written to again
    assert Bundle.open(folder).files("report")


def test_failed_file_write_keeps_old_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> Path:
        if path.name == "model.onnx":
            raise RobustExportError("disk full")
        return write_atomically(path, content)

    monkeypatch.setattr(bundle_module, "write_atomically", full)
    with pytest.raises(RobustExportError, match="disk full"):
        Bundle.open(folder).write({"model.onnx": b"another"}, "onnx")
    opened = Bundle.open(folder)
    assert opened.file("model.onnx").read_bytes() == b"graph" * 100


def test_third_content_is_refused_during_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file is being replaced, only its old and its new content are accepted."""

    def stop(path: Path, content: bytes) -> Path:
        raise Killed

    monkeypatch.setattr(bundle_module, "write_atomically", stop)
    with pytest.raises(Killed):
        Bundle.open(folder).write({"model.onnx": b"another"}, "onnx")
    Bundle.open(folder)
    (folder / "model.onnx").write_bytes(b"altered")
    with pytest.raises(BundleError, match="altered"):
        Bundle.open(folder)
