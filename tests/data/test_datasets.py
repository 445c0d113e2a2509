"""Splits, pixels and labels, batches, and damaged images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from robust_export.data.datasets import (
    Batch,
    Images,
    Split,
    batch_indices,
    load_batches,
    load_dataset,
    load_splits,
    open_source,
    shuffled_count,
)
from robust_export.data.source import DataSource, LabelledImages, LazyImages
from robust_export.errors import DataError, UnknownName

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


def test_splits_do_not_overlap(digits: dict[str, Images]) -> None:
    assert {split: len(images) for split, images in digits.items()} == {
        "train": 1293,
        "val": 144,
        "test": 360,
    }
    raw = load_digits()
    everything = sum((contents(images) for images in digits.values()), Counter())
    labels = Counter(label for _, label in everything.elements())
    assert everything.total() == len(everything) == 1797  # all differ: no image is in two splits
    assert labels == Counter(raw.target.tolist())


def test_splits_are_stratified(digits: dict[str, Images]) -> None:
    counts = np.bincount(load_digits().target)
    for images in digits.values():
        expected = counts * len(images) / 1797
        assert np.abs(np.bincount(images.labels.numpy()) - expected).max() <= 1.5


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_stable(digits: dict[str, Images], split: Split) -> None:
    again = load_dataset("digits", split)
    assert same(digits[split], again)
    assert digits[split].digest == again.digest == digits["test"].digest


@pytest.mark.parametrize("split", SPLITS)
def test_pixels_are_those_of_scikit_learn(digits: dict[str, Images], split: Split) -> None:
    """8x8, 16 levels over [0, 1], rounded to 1/255."""
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


def test_one_channel_equals_each_of_three(digits: dict[str, Images]) -> None:
    grey = load_dataset("digits", in_chans=1)
    assert grey[0][0].shape == (1, 8, 8)
    for channel in range(3):
        indices = range(len(grey))
        assert torch.equal(grey.batch(indices)[0][:, 0], digits["test"].batch(indices)[0][:, channel])


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


def test_unknown_names_suggest_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown split 'tset'; did you mean 'test'"):
        load_dataset("digits", "tset")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="unknown data set 'digts'; did you mean 'digits'"):
        load_dataset("digts")


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5])
def test_val_is_part_of_train(digits: dict[str, Images], fraction: float) -> None:
    train, val = load_splits("digits", 8, 3, "data", fraction)
    assert len(val) == -(-1437 * fraction // 1)
    assert contents(train) + contents(val) == contents(digits["train"]) + contents(digits["val"])
    assert same(val, load_dataset("digits", "val", val_fraction=fraction))
    assert same(train, load_dataset("digits", "train", val_fraction=fraction))
    assert same(digits["test"], load_dataset("digits", "test", val_fraction=fraction))


@pytest.mark.parametrize("fraction", [1.0, 1.5, 0.999])
def test_val_fraction_that_leaves_nothing(fraction: float) -> None:
    with pytest.raises(DataError, match="digits"):
        load_dataset("digits", "train", val_fraction=fraction)


@pytest.mark.parametrize("spec", ["imagenet", "cifar", "", "digits:x", "cifar10:data", "Digits", "folders:x"])
def test_unknown_data_set(spec: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown data set {spec!r}"):
        open_source(spec)


# --- indices, batches, loaders ---


def test_items_equal_batches(digits: dict[str, Images]) -> None:
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


def test_batch_is_a_copy(digits: dict[str, Images]) -> None:
    images = digits["val"]
    before = images[0][0].clone()
    images.batch([0])[0].zero_()
    images[0][0].zero_()
    assert torch.equal(images[0][0], before)


@pytest.mark.parametrize("workers", [0, 1])
def test_torch_data_loader(digits: dict[str, Images], workers: int) -> None:
    images = digits["val"]
    loaded = list(DataLoader(images, batch_size=50, num_workers=workers))
    assert [len(labels) for _, labels in loaded] == [50, 50, 44]
    pixels, labels = images.batch(range(144))
    assert torch.equal(torch.cat([batch[0] for batch in loaded]), pixels)
    assert torch.equal(torch.cat([batch[1] for batch in loaded]), labels)


def batches(images: Images, batch_size: int, *, seed: int | None = None, workers: int = 0) -> Iterator[Batch]:
    return load_batches(images, batch_indices(len(images), batch_size, seed), workers)


def numbered(n: int) -> Images:
    """Return n images of one pixel, each with its index as label."""
    arrays = list(np.arange(n, dtype=np.uint8).reshape(n, 1, 1))
    part = LabelledImages(LazyImages(arrays, Image.fromarray), np.arange(n))
    return Images(DataSource("numbered", ("x",), part, part, "", 1), part, 1, 1)


@given(st.integers(1, 40), st.integers(1, 12), st.none() | st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_batches_have_all_images_once(n: int, batch_size: int, seed: int | None) -> None:
    """A shuffled pass omits a last batch of one image."""
    images = numbered(n)
    result = list(batches(images, batch_size, seed=seed))
    labels = torch.cat([batch[1] for batch in result])
    assert torch.equal(torch.cat([batch[0] for batch in result]).flatten().mul(255).round().long(), labels)
    sizes = [len(batch[1]) for batch in result]
    dropped = seed is not None and batch_size > 1 and n > 1 and n % batch_size == 1
    assert sum(sizes) == n - dropped
    assert all(size == batch_size for size in sizes[:-1])
    assert len(set(labels.tolist())) == n - dropped
    if seed is None:
        assert labels.tolist() == list(range(n))
    else:
        assert sum(sizes) == shuffled_count(n, batch_size)
        assert 1 not in sizes or batch_size == 1 or n == 1
        again = torch.cat([batch[1] for batch in batches(images, batch_size, seed=seed)])
        assert torch.equal(again, labels)


def test_order_depends_on_the_seed() -> None:
    images = numbered(100)
    orders = {tuple(next(batches(images, 100, seed=seed))[1].tolist()) for seed in range(20)}
    assert len(orders) == 20
    assert tuple(range(100)) not in orders
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(batches(images, 10, seed=1))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is unused
