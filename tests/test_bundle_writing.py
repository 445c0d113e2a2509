"""Writing into a bundle: what is listed, and that it stays whole when it fails or is killed at any moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from robust_export import bundle as room
from robust_export.bundle import MANIFEST, Bundle
from robust_export.errors import BundleError, RobustExportError
from robust_export.utils.files import sha256, write_atomically
from tests.small_bundle import make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "tiny").path


def test_write_lists_a_new_file(folder: Path) -> None:
    bundle = Bundle.open(folder)
    written = bundle.write({"model.fp16.onnx": b"half"}, "onnx", precision="fp16")
    assert written == [folder / "model.fp16.onnx"]
    assert written[0].read_bytes() == b"half"
    for again in (bundle, Bundle.open(folder)):
        assert again.files("onnx") == ["model.onnx", "model.fp16.onnx"]
        assert again.manifest["files"]["model.fp16.onnx"]["precision"] == "fp16"


def test_write_replaces_a_file_and_its_digest(folder: Path) -> None:
    Bundle.open(folder).write({"model.onnx": b"another graph"}, "onnx")
    entry = Bundle.open(folder).manifest["files"]["model.onnx"]
    assert entry == {"sha256": sha256(folder / "model.onnx"), "bytes": 13, "kind": "onnx"}


def test_write_leaves_everything_as_it_was_if_the_manifest_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / MANIFEST).read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RobustExportError, match=MANIFEST):
        Bundle.open(folder).write({"model.onnx": b"another"}, "other")
    assert (folder / MANIFEST).read_bytes() == before


class Killed(BaseException):
    """What nothing catches, as kill -9."""


@pytest.mark.parametrize("moment", range(8))
def test_a_bundle_that_is_killed_while_it_is_written_into_stays_whole(
    folder: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every replacement of a file, before and after it."""
    replace, done = os.replace, 0

    def killed(*paths: Any) -> None:
        nonlocal done
        if done == moment:
            raise Killed
        replace(*paths)
        done += 1
        if done == moment:
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
    opened.write({"later.json": "{}"}, "report")  # and goes on from there
    assert Bundle.open(folder).files("report")


def test_a_file_that_cannot_be_written_leaves_the_old_one_listed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> Path:
        if path.name == "model.onnx":
            raise RobustExportError("disk full")
        return write_atomically(path, content)

    monkeypatch.setattr(room, "write_atomically", full)
    with pytest.raises(RobustExportError, match="disk full"):
        Bundle.open(folder).write({"model.onnx": b"another"}, "onnx")
    opened = Bundle.open(folder)
    assert opened.file("model.onnx").read_bytes() == b"graph" * 100


def test_a_third_content_is_still_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file is replaced, the old and the new one are taken, and no other."""

    def stop(path: Path, content: bytes) -> Path:
        raise Killed

    monkeypatch.setattr(room, "write_atomically", stop)
    with pytest.raises(Killed):
        Bundle.open(folder).write({"model.onnx": b"another"}, "onnx")
    Bundle.open(folder)
    (folder / "model.onnx").write_bytes(b"altered")
    with pytest.raises(BundleError, match="altered"):
        Bundle.open(folder)
