"""Splits as a network gets them: pixels, labels, batches, and what a damaged image does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from robust_export.data import datasets
from robust_export.data.datasets import Images, Split, batch_count, batches, load_dataset, load_splits
from robust_export.data.source import Part, Pictures, Source
from robust_export.errors import DataError, UnknownName
from tests.data import write_folder

SPLITS: tuple[Split, ...] = get_args(Split)


@pytest.fixture(scope="module")
def digits() -> dict[str, Images]:
    return {split: load_dataset("digits", split) for split in SPLITS}


def contents(images: Images) -> Counter[tuple[bytes, int]]:
    pixels, labels = images.batch(range(len(images)))
    return Counter((image.numpy().tobytes(), int(label)) for image, label in zip(pixels, labels, strict=True))


def same(one: Images, other: Images) -> bool:
    a, b = (images.batch(range(len(images))) for images in (one, other))
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


# --- digits ---


def test_digits_are_split_without_overlap(digits: dict[str, Images]) -> None:
    assert {split: len(images) for split, images in digits.items()} == {
        "train": 1293,
        "val": 144,
        "test": 360,
    }
    raw = load_digits()
    found = sum((contents(images) for images in digits.values()), Counter())
    labels = Counter(label for _, label in found.elements())
    assert found.total() == len(found) == 1797  # no two are equal, so no image is in two splits
    assert labels == Counter(raw.target.tolist())


def test_digits_are_stratified(digits: dict[str, Images]) -> None:
    whole = np.bincount(load_digits().target)
    for images in digits.values():
        expected = whole * len(images) / 1797
        assert np.abs(np.bincount(images.labels.numpy()) - expected).max() <= 1.5


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_the_same_in_every_call(digits: dict[str, Images], split: Split) -> None:
    again = load_dataset("digits", split)
    assert same(digits[split], again)
    assert digits[split].digest == again.digest == digits["test"].digest


@pytest.mark.parametrize("split", SPLITS)
def test_pixels_are_scikit_learns(digits: dict[str, Images], split: Split) -> None:
    """At their own size, 16 levels over [0, 1], to the nearest byte."""
    raw = load_digits()
    known = {
        np.rint(image).astype(int).tobytes(): (image / 16, target)
        for image, target in zip(raw.images, raw.target, strict=True)
    }
    pixels, labels = digits[split].batch(range(len(digits[split])))
    assert pixels.shape == (len(labels), 3, 8, 8)
    assert pixels.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert pixels.min() == 0
    assert pixels.max() == 1
    for image, label in zip(pixels.double().numpy(), labels.tolist(), strict=True):
        original, target = known[np.rint(image[0] * 16).astype(int).tobytes()]
        assert label == target
        assert np.abs(image - original).max() <= 1 / 255


def test_one_channel_is_each_of_three(digits: dict[str, Images]) -> None:
    grey = load_dataset("digits", in_chans=1)
    assert grey[0][0].shape == (1, 8, 8)
    for channel in range(3):
        every = range(len(grey))
        assert torch.equal(grey.batch(every)[0][:, 0], digits["test"].batch(every)[0][:, channel])


@pytest.mark.parametrize("size", [4, 8, 12, 32])
def test_images_are_resized(digits: dict[str, Images], size: int) -> None:
    resized = load_dataset("digits", image_size=size)
    assert resized[3][0].shape == (3, size, size)
    original = Image.fromarray(digits["test"][3][0][0].mul(255).byte().numpy())
    expected = np.asarray(original.resize((size, size), Image.Resampling.BILINEAR)) / np.float32(255)
    np.testing.assert_allclose(resized[3][0][0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("in_chans", [0, 2, 4])
def test_other_channels_are_refused(in_chans: int) -> None:
    with pytest.raises(DataError, match="in_chans"):
        load_dataset("digits", in_chans=in_chans)


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match="unknown split 'tset'; did you mean 'test'"):
        load_dataset("digits", "tset")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="unknown data set 'digts'; did you mean 'digits'"):
        load_dataset("digts")


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5])
def test_val_is_split_off_train(digits: dict[str, Images], fraction: float) -> None:
    train, val = load_splits("digits", 8, 3, "data", fraction)
    assert len(val) == -(-1437 * fraction // 1)
    assert contents(train) + contents(val) == contents(digits["train"]) + contents(digits["val"])
    assert same(val, load_dataset("digits", "val", val_fraction=fraction))
    assert same(train, load_dataset("digits", "train", val_fraction=fraction))
    assert same(digits["test"], load_dataset("digits", "test", val_fraction=fraction))


@pytest.mark.parametrize("fraction", [1.0, 1.5, 0.999])
def test_a_val_fraction_that_leaves_nothing(fraction: float) -> None:
    with pytest.raises(DataError, match="digits"):
        load_dataset("digits", "train", val_fraction=fraction)


# --- indices, batches, loaders ---


def test_one_image_is_a_batch_of_one(digits: dict[str, Images]) -> None:
    images = digits["val"]
    pixels, labels = images.batch([5, 0, 143])
    for row, index in enumerate((5, 0, 143)):
        assert torch.equal(images[index][0], pixels[row])
        assert images[index][1] == labels[row]
        assert type(images[index][1]) is int
    for negative in (-1, -144):
        assert torch.equal(images[negative][0], images[144 + negative][0])
    for outside in (144, -145, 10**6):
        with pytest.raises(IndexError):
            images[outside]


def test_a_batch_is_ones_own(digits: dict[str, Images]) -> None:
    images = digits["val"]
    before = images[0][0].clone()
    images.batch([0])[0].zero_()
    images[0][0].zero_()
    assert torch.equal(images[0][0], before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_torch_data_loader_works_on_it(digits: dict[str, Images], workers: int) -> None:
    images = digits["val"]
    loaded = list(DataLoader(images, batch_size=50, num_workers=workers))
    assert [len(labels) for _, labels in loaded] == [50, 50, 44]
    pixels, labels = images.batch(range(144))
    assert torch.equal(torch.cat([batch[0] for batch in loaded]), pixels)
    assert torch.equal(torch.cat([batch[1] for batch in loaded]), labels)


def numbered(n: int) -> Images:
    """Return n images of one pixel, each with its index as label."""
    arrays = list(np.arange(n, dtype=np.uint8).reshape(n, 1, 1))
    part = Part(Pictures(arrays, Image.fromarray), np.arange(n))
    return Images(Source("numbered", ("x",), part, part, "", 1), part, 1, 1)


@given(st.integers(1, 40), st.integers(1, 12), st.none() | st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_batches_are_all_images_once(n: int, batch_size: int, seed: int | None) -> None:
    """A shuffled pass drops the image that would be a batch by itself, if it is not the only one."""
    images = numbered(n)
    found = list(batches(images, batch_size, shuffle_seed=seed))
    labels = torch.cat([batch[1] for batch in found])
    assert torch.equal(torch.cat([batch[0] for batch in found]).flatten().mul(255).round().long(), labels)
    sizes = [len(batch[1]) for batch in found]
    dropped = seed is not None and batch_size > 1 and n > 1 and n % batch_size == 1
    assert sum(sizes) == n - dropped
    assert all(size == batch_size for size in sizes[:-1])
    assert len(set(labels.tolist())) == n - dropped
    if seed is None:
        assert labels.tolist() == list(range(n))
    else:
        assert len(found) == batch_count(images, batch_size)
        assert 1 not in sizes or batch_size == 1 or n == 1
        again = torch.cat([batch[1] for batch in batches(images, batch_size, shuffle_seed=seed)])
        assert torch.equal(again, labels)


def test_the_order_is_the_seeds() -> None:
    images = numbered(100)
    orders = {tuple(next(batches(images, 100, shuffle_seed=seed))[1].tolist()) for seed in range(20)}
    assert len(orders) == 20
    assert tuple(range(100)) not in orders
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(batches(images, 10, shuffle_seed=1))
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers are used up


# --- folders ---


def lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CACHE_BYTES", 0)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of images of all modes, sizes and formats."""
    write_folder(tmp_path, {"cat": 6, "dog": 6}, (9, 13))
    source = Image.open(tmp_path / "cat" / "000.png").convert("RGB")
    for i, (mode, suffix, size) in enumerate(
        [("L", "png", (5, 5)), ("RGBA", "png", (40, 7)), ("P", "bmp", (8, 8)), ("CMYK", "jpg", (16, 9)),
         ("1", "png", (3, 30)), ("LA", "webp", (64, 64)), ("I;16", "tiff", (10, 10)), ("RGB", "jpeg", (1, 1))]
    ):  # fmt: skip
        source.resize(size).convert("L" if mode == "I;16" else "RGB").convert(mode).save(
            tmp_path / ("cat", "dog")[i % 2] / f"mixed{i}.{suffix}"
        )
    return tmp_path


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("split", SPLITS)
def test_lazily_read_images_are_the_same(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, split: Split, in_chans: int
) -> None:
    cached = load_dataset(f"folder:{mixed}", split, 12, in_chans)
    lazily(monkeypatch)
    lazy = load_dataset(f"folder:{mixed}", split, 12, in_chans)
    assert cached._cache is not None
    assert lazy._cache is None
    assert lazy[0][0].shape == (in_chans, 12, 12)
    assert same(cached, lazy)
    assert torch.equal(cached[-1][0], lazy[-1][0])


@pytest.mark.parametrize("cached", [True, False])
def test_a_worker_gives_the_same_batches(mixed: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    if not cached:
        lazily(monkeypatch)
    images = load_dataset(f"folder:{mixed}", "train", 12)
    for seed in (None, 3):
        alone = list(batches(images, 4, shuffle_seed=seed))
        helped = list(batches(images, 4, shuffle_seed=seed, workers=1))
        assert len(alone) == len(helped) > 2
        for (a, b), (c, d) in zip(alone, helped, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


def test_a_folder_has_a_size_of_its_own(mixed: Path) -> None:
    assert load_dataset(f"folder:{mixed}")[0][0].shape == (3, 224, 224)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("way", ["cached", "lazy", "worker"])
def test_a_damaged_image_is_named(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, damage: str, way: str
) -> None:
    for path in (mixed / "cat").iterdir():
        content = path.read_bytes()
        path.write_bytes(
            {"cut": content[: len(content) * 2 // 3], "text": b"not an image", "empty": b""}[damage]
        )
    if way == "cached":
        with pytest.raises(DataError, match=f"{mixed}/cat/.* cannot be decoded"):
            load_dataset(f"folder:{mixed}", image_size=8)
        return
    lazily(monkeypatch)
    images = load_dataset(f"folder:{mixed}", image_size=8)
    with pytest.raises(DataError, match=f"{mixed}/cat/.* cannot be decoded") as caught:
        list(batches(images, 2, workers=int(way == "worker")))
    assert "Traceback" not in str(caught.value)
