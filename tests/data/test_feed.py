"""The batches of an epoch: their order, where they go on, and the extra images among them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robust_export.data.augment import cutmix, randaugment
from robust_export.data.datasets import Images, load_dataset
from robust_export.data.feed import Feed, load_extra_images
from robust_export.errors import DataError, InvalidValue
from tests.data import write_folder


def digits() -> Images:
    return load_dataset("digits", "train", 8)


def extra_digits(folder: Path, counts: dict[str, int], images: Images) -> Images:
    write_folder(folder, counts)
    return load_extra_images(f"folder:{folder}", images, 8, 3)


@pytest.mark.parametrize("skip", [0, 3, 11])
def test_an_epoch_goes_on_anywhere(skip: int) -> None:
    feed = Feed(digits(), 128)
    whole = list(feed.epoch(5))
    assert len(whole) == len(feed) == 11
    rest = list(feed.epoch(5, skip))
    assert len(rest) == 11 - skip
    for (a, x), (b, y) in zip(whole[skip:], rest, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)


def test_extra_images_take_their_part_of_every_batch(tmp_path: Path) -> None:
    images = digits()
    extra = extra_digits(tmp_path, {"7": 3, "2": 5}, images)
    feed = Feed(images, 100, 0, extra, 0.3)
    known = {image.numpy().tobytes() for image in extra.batch(range(8))[0]}
    own = []
    for pixels, labels in feed.epoch(0):
        theirs = [image.numpy().tobytes() in known for image in pixels]
        assert sum(theirs) == 30
        assert set(labels[torch.tensor(theirs)].tolist()) <= {2, 7}
        own += [image.numpy().tobytes() for image, foreign in zip(pixels, theirs, strict=True) if not foreign]
    assert sorted(own) == sorted(image.numpy().tobytes() for image in images.batch(range(len(images)))[0])
    first = [labels.tolist() for _, labels in feed.epoch(1)]
    assert first == [labels.tolist() for _, labels in feed.epoch(1)]
    assert first[4:] == [labels.tolist() for _, labels in feed.epoch(1, 4)]
    assert first != [labels.tolist() for _, labels in feed.epoch(2)]


@pytest.mark.parametrize("cached", [True, False])
def test_the_part_of_a_process_may_be_extra_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    if not cached:
        monkeypatch.setattr("robust_export.data.datasets.CACHE_BYTES", 0)
    images = digits()
    extra = extra_digits(tmp_path, {"9": 2, "4": 3}, images)
    feed, count = Feed(images, 100, 0, extra, 0.3), len(images)
    pixels, labels = feed.batch([count + 1, count + 4])
    expected = extra.batch([1, 4])
    assert torch.equal(pixels, expected[0])
    assert torch.equal(labels, expected[1])


def test_extra_images_have_the_data_sets_labels(tmp_path: Path) -> None:
    """Sub-folders are sorted by name; their index among themselves is not that of the class."""
    images = digits()
    extra = extra_digits(tmp_path, {"9": 2, "4": 3}, images)
    assert sorted(extra.labels.tolist()) == [4, 4, 4, 9, 9]


def test_of_a_folder_with_a_split_only_train_is_taken(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"1": 4, "3": 2})
    write_folder(tmp_path / "val", {"1": 9, "3": 9})
    assert len(load_extra_images(f"folder:{tmp_path}", digits(), 8, 3)) == 6


def test_unknown_classes_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"3": 2, "cat": 2})
    with pytest.raises(DataError, match=r"classes that digits lacks: cat;.*0, 1, 2"):
        load_extra_images(f"folder:{tmp_path}", digits(), 8, 3)


@pytest.mark.parametrize("spec", ["digits", "folder:", "nowhere"])
def test_only_folders_are_taken(spec: str) -> None:
    with pytest.raises(InvalidValue, match="expected folder:PATH"):
        load_extra_images(spec, digits(), 8, 3)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_extra_images(f"folder:{tmp_path / 'nowhere'}", digits(), 8, 3)


def test_a_ratio_that_leaves_nothing(tmp_path: Path) -> None:
    images = digits()
    with pytest.raises(InvalidValue, match=r"extra_ratio 0\.9 leaves no place.*batch of 4"):
        Feed(images, 4, 0, extra_digits(tmp_path, {"7": 3, "2": 5}, images), 0.9)


# --- CutMix and RandAugment ---


def test_cutmix_mixes_labels_by_the_area_that_it_pastes() -> None:
    """Image i is i / 8 throughout, so that each pixel tells which image it came from."""
    torch.manual_seed(0)
    pixels = torch.arange(8).view(8, 1, 1, 1).expand(8, 3, 10, 10) / 8
    mixed, labels = cutmix(pixels, torch.arange(8), 1.0, 8)
    assert mixed.shape == pixels.shape
    pasted = 0
    for i in range(8):
        sources = (mixed[i, 0] * 8).round().long().flatten()
        share = torch.bincount(sources, minlength=8) / 100
        torch.testing.assert_close(labels[i], share)
        pasted += int((sources != i).any())
    assert pasted == 8


def test_without_alpha_and_operations_nothing_changes() -> None:
    pixels, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    same = cutmix(pixels, labels, 0.0, 10)
    assert same[0] is pixels
    assert same[1] is labels
    assert randaugment(pixels, 0, 9) is pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_changes_each_image_by_itself(channels: int) -> None:
    torch.manual_seed(0)
    image = torch.rand(1, channels, 8, 8)
    found = randaugment(image.expand(32, -1, -1, -1), 2, 15)
    assert found.shape == (32, channels, 8, 8)
    assert found.dtype == torch.float32
    assert 0 <= found.min() <= found.max() <= 1
    assert len({one.numpy().tobytes() for one in found}) > 16
    torch.manual_seed(0)
    torch.rand(1, channels, 8, 8)
    assert torch.equal(found, randaugment(image.expand(32, -1, -1, -1), 2, 15))
