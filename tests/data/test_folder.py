"""Folders of images with one sub-folder per class."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robust_export.data.datasets import open_source
from robust_export.errors import DataError
from tests.data.sample_data import write_folder


def test_folder_with_train_and_val(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", {"cat": 3, "dog": 2})
    val = write_folder(tmp_path / "val", {"dog": 1, "cat": 2})
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ("cat", "dog")
    assert source.size is None
    for part, written in ((source.train, train), (source.test, val)):
        expected = [*written["cat"], *written["dog"]]
        assert part.labels.tolist() == [0] * len(written["cat"]) + [1] * len(written["dog"])
        for image, array in zip(part.images, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(image), array)


def test_folder_without_split(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 20, "dog": 10, "emu": 5})
    (tmp_path / "cat" / "notes.txt").write_text("ignored")
    source = open_source(f"folder:{tmp_path}")
    assert np.bincount(source.test.labels).tolist() == [4, 2, 1]
    files = [*source.train.images.items, *source.test.images.items]
    assert sorted(files) == sorted(tmp_path.rglob("*.png"))
    assert [path.parent.name for path in source.test.images.items] == ["cat"] * 4 + ["dog"] * 2 + ["emu"]
    assert source.test.images.items == open_source(f"folder:{tmp_path}").test.images.items


def flip_a_byte(root: Path) -> None:
    content = bytearray((root / "cat" / "000.png").read_bytes())
    content[-1] ^= 1
    (root / "cat" / "000.png").write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "one byte": flip_a_byte,
    "other class": lambda root: (root / "cat" / "000.png").rename(root / "dog" / "zzz.png"),
    "renamed class": lambda root: (root / "cat").rename(root / "kitten"),
    "file removed": lambda root: (root / "dog" / "001.png").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("with_split", [True, False])
def test_digest_depends_on_the_files(tmp_path: Path, change: str, with_split: bool) -> None:
    root = tmp_path / "data"
    write_folder(root / "train" if with_split else root, {"cat": 5, "dog": 5})
    if with_split:
        write_folder(root / "val", {"cat": 2, "dog": 2})
    before = open_source(f"folder:{root}").digest
    assert re.fullmatch("[0-9a-f]{64}", before)
    shutil.copytree(root, tmp_path / "copy")
    assert open_source(f"folder:{tmp_path / 'copy'}").digest == before
    for part in (root / "train", root / "val") if with_split else (root,):
        CHANGES[change](part)
    assert open_source(f"folder:{root}").digest != before


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (None, "no such folder"),
        ({}, "no class sub-folders"),
        ({"cat": 5}, r"one class \(cat\)"),
        ({"cat": 0, "dog": 0}, "has no images"),
        ({"cat": 5, "dog": 0}, "has no images"),
        ({"cat": 5, "dog": 1}, "too few to split"),
    ],
)
def test_invalid_folder(tmp_path: Path, counts: dict[str, int] | None, message: str) -> None:
    if counts is not None:
        (tmp_path / "data").mkdir()
        write_folder(tmp_path / "data", counts)
    with pytest.raises(DataError, match=f"{tmp_path}/data.*{message}"):
        open_source(f"folder:{tmp_path}/data")


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ({"cat": 2, "dog": 2}, {"cat": 2, "dog": 2, "emu": 2}, "only in one of them: emu"),
        ({"cat": 2, "dog": 2, "emu": 2}, {"cat": 2, "dog": 2}, "only in one of them: emu"),
        ({"cat": 2, "dog": 2}, {"cat": 2, "fox": 2}, "dog, fox"),
        ({"cat": 2, "dog": 2}, {"cat": 2, "dog": 0}, "class 'dog' .*val has no images"),
        ({"cat": 2, "dog": 0}, {"cat": 2, "dog": 2}, "class 'dog' .*train has no images"),
        ({"cat": 2, "dog": 2}, {}, "val has no class sub-folders"),
    ],
)
def test_mismatched_train_and_val(
    tmp_path: Path, train: dict[str, int], val: dict[str, int], message: str
) -> None:
    (tmp_path / "val").mkdir()
    write_folder(tmp_path / "train", train)
    write_folder(tmp_path / "val", val)
    with pytest.raises(DataError, match=message):
        open_source(f"folder:{tmp_path}")


def test_class_named_train(tmp_path: Path) -> None:
    write_folder(tmp_path, {"car": 3, "train": 3})
    assert open_source(f"folder:{tmp_path}").classes == ("car", "train")


@pytest.mark.parametrize("other", ["test", "valid", "validation"])
def test_unknown_split_folder_is_refused(tmp_path: Path, other: str) -> None:
    """Accepting it would make train/ and test/ the classes."""
    write_folder(tmp_path / "train", {"cat": 5, "dog": 5})
    write_folder(tmp_path / other, {"cat": 5, "dog": 5})
    with pytest.raises(DataError, match=other):
        open_source(f"folder:{tmp_path}")
