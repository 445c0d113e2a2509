"""Training batches: order, skipped batches, and extra images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robust_export.data.datasets import Images, load_dataset
from robust_export.data.feed import Feed, load_extra_images
from robust_export.errors import DataError, InvalidValue
from tests.data.sample_data import write_folder


def digits() -> Images:
    return load_dataset("digits", "train", 8)


def extra_digits(folder: Path, counts: dict[str, int], images: Images) -> Images:
    write_folder(folder, counts)
    return load_extra_images(f"folder:{folder}", images, 8, 3)


@pytest.mark.parametrize("skip", [0, 3, 11])
def test_epoch_with_skipped_batches(skip: int) -> None:
    feed = Feed(digits(), 128)
    whole = list(feed.epoch(5))
    assert len(whole) == len(feed) == 11
    rest = list(feed.epoch(5, skip))
    assert len(rest) == 11 - skip
    for (a, x), (b, y) in zip(whole[skip:], rest, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)


def test_proportion_of_extra_images(tmp_path: Path) -> None:
    images = digits()
    extra = extra_digits(tmp_path, {"7": 3, "2": 5}, images)
    feed = Feed(images, 100, 0, extra, 0.3)
    known = {image.numpy().tobytes() for image in extra.batch(range(8))[0]}
    own = []
    for pixels, labels in feed.epoch(0):
        is_extra = [image.numpy().tobytes() in known for image in pixels]
        assert sum(is_extra) == 30
        assert set(labels[torch.tensor(is_extra)].tolist()) <= {2, 7}
        own += [
            image.numpy().tobytes()
            for image, extra_image in zip(pixels, is_extra, strict=True)
            if not extra_image
        ]
    assert sorted(own) == sorted(image.numpy().tobytes() for image in images.batch(range(len(images)))[0])
    first = [labels.tolist() for _, labels in feed.epoch(1)]
    assert first == [labels.tolist() for _, labels in feed.epoch(1)]
    assert first[4:] == [labels.tolist() for _, labels in feed.epoch(1, 4)]
    assert first != [labels.tolist() for _, labels in feed.epoch(2)]


@pytest.mark.parametrize("cached", [True, False])
def test_batch_of_extra_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    if not cached:
        monkeypatch.setattr("robust_export.data.datasets.CACHE_BYTES", 0)
    images = digits()
    extra = extra_digits(tmp_path, {"9": 2, "4": 3}, images)
    feed, count = Feed(images, 100, 0, extra, 0.3), len(images)
    pixels, labels = feed.batch([count + 1, count + 4])
    expected = extra.batch([1, 4])
    assert torch.equal(pixels, expected[0])
    assert torch.equal(labels, expected[1])


def test_extra_images_have_label_indices_of_the_data_set(tmp_path: Path) -> None:
    """The index of a sub-folder among the others is not that of its class."""
    images = digits()
    extra = extra_digits(tmp_path, {"9": 2, "4": 3}, images)
    assert sorted(extra.labels.tolist()) == [4, 4, 4, 9, 9]


def test_folder_with_split_uses_train_only(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"1": 4, "3": 2})
    write_folder(tmp_path / "val", {"1": 9, "3": 9})
    assert len(load_extra_images(f"folder:{tmp_path}", digits(), 8, 3)) == 6


def test_unknown_classes_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"3": 2, "cat": 2})
    with pytest.raises(DataError, match=r"classes that digits lacks: cat;.*0, 1, 2"):
        load_extra_images(f"folder:{tmp_path}", digits(), 8, 3)


@pytest.mark.parametrize("spec", ["digits", "folder:", "nowhere"])
def test_extra_must_be_a_folder(spec: str) -> None:
    with pytest.raises(InvalidValue, match="expected folder:PATH"):
        load_extra_images(spec, digits(), 8, 3)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_extra_images(f"folder:{tmp_path / 'nowhere'}", digits(), 8, 3)


def test_ratio_that_leaves_nothing(tmp_path: Path) -> None:
    images = digits()
    with pytest.raises(InvalidValue, match=r"extra_ratio 0\.9 leaves none.*batch of 4"):
        Feed(images, 4, 0, extra_digits(tmp_path, {"7": 3, "2": 5}, images), 0.9)
