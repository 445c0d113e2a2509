"""Augmentation: translations, flips, CutMix and RandAugment."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from robust_export.data.augment import augment, cutmix, randaugment

small = st.integers(1, 5)
seeds = st.integers(0, 2**63 - 1)


def random_images(n: int, c: int, h: int, w: int) -> Tensor:
    """Return images without zeros, to distinguish them from padding."""
    return torch.rand(n, c, h, w, generator=Generator().manual_seed(0)) + 0.5


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def translate(image: Tensor, down: int, right: int) -> Tensor:
    """Translate [C, H, W] by whole pixels with zero padding, by definition."""
    moved = torch.zeros_like(image)
    height, width = image.shape[1:]
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                moved[:, y, x] = image[:, y - down, x - right]
    return moved


def translations(image: Tensor, shift: int) -> dict[tuple[int, int], Tensor]:
    steps = range(-shift, shift + 1)
    return {(down, right): translate(image, down, right) for down in steps for right in steps}


@given(small, small, small, small, st.integers(0, 3), st.booleans(), seeds)
@settings(deadline=None)
def test_result_is_a_translation_or_its_mirror_image(
    n: int, c: int, h: int, w: int, shift: int, flip: bool, seed: int
) -> None:
    images = random_images(n, c, h, w)
    before = images.clone()
    result = augment(images, shift, flip, seeded(seed))
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    assert torch.equal(images, before)
    for image, original in zip(result, images, strict=True):
        candidates = list(translations(original, shift).values())
        if flip:
            candidates += [candidate.flip(2) for candidate in candidates]
        assert any(torch.equal(image, candidate) for candidate in candidates)


@given(small, small, seeds)
@settings(deadline=None)
def test_without_shift_and_flip_nothing_changes(h: int, w: int, seed: int) -> None:
    images = random_images(4, 3, h, w)
    assert torch.equal(augment(images, 0, False, seeded(seed)), images)


@pytest.mark.parametrize("shift", [1, 2])
@pytest.mark.parametrize(("h", "w"), [(6, 6), (5, 9), (9, 5)])
def test_images_move_independently_and_evenly(shift: int, h: int, w: int) -> None:
    """600 equal images: all (2 shift + 1)^2 translations occur about equally often."""
    images = random_images(1, 2, h, w).expand(600, -1, -1, -1)
    result = augment(images, shift, False, seeded())
    candidates = translations(images[0], shift)
    counts = [sum(torch.equal(image, candidate) for image in result) for candidate in candidates.values()]
    assert sum(counts) == 600
    expected = 600 / len(candidates)
    assert all(expected / 2 < count < expected * 2 for count in counts)


def test_about_half_are_mirrored() -> None:
    images = random_images(1000, 1, 3, 4)
    result = augment(images, 0, True, seeded())
    mirrored = result.eq(images.flip(3)).flatten(1).all(1)
    same = result.eq(images).flatten(1).all(1)
    assert torch.equal(mirrored, ~same)
    assert 420 < mirrored.sum() < 580


def test_shift_larger_than_the_image() -> None:
    images = random_images(200, 1, 2, 3)
    result = augment(images, 4, False, seeded())
    sums = result.flatten(1).sum(1)
    assert sums.min() == 0
    assert sums.max() > 0


@given(seeds, seeds)
@settings(deadline=None)
def test_only_the_generator_is_random(seed: int, other: int) -> None:
    images = random_images(32, 1, 6, 5)
    torch.manual_seed(other)
    state = torch.get_rng_state()
    result = augment(images, 2, True, seeded(seed))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(augment(images, 2, True, seeded(seed)), result)
    if seed != other:
        assert not torch.equal(augment(images, 2, True, seeded(other)), result)


def test_next_batch_differs() -> None:
    images, generator = random_images(32, 1, 6, 5), seeded()
    assert not torch.equal(augment(images, 2, True, generator), augment(images, 2, True, generator))


def test_order_is_kept() -> None:
    """Image i of the result comes from image i."""
    images = torch.arange(1.0, 51).view(50, 1, 1, 1).expand(-1, 1, 5, 5)
    result = augment(images, 2, True, seeded())
    assert torch.equal(result.flatten(1).amax(1), torch.arange(1.0, 51))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    images = random_images(4, 3, 5, 5).mul(100).to(dtype)
    assert augment(images, 1, True, seeded()).dtype == dtype


# --- CutMix and RandAugment ---


def test_cutmix_mixes_labels_by_area() -> None:
    """Image i has the constant value i / 8, which identifies the origin of each pixel."""
    torch.manual_seed(0)
    pixels = torch.arange(8).view(8, 1, 1, 1).expand(8, 3, 10, 10) / 8
    mixed, labels = cutmix(pixels, torch.arange(8), 1.0, 8)
    assert mixed.shape == pixels.shape
    pasted = 0
    for i in range(8):
        sources = (mixed[i, 0] * 8).round().long().flatten()
        proportions = torch.bincount(sources, minlength=8) / 100
        torch.testing.assert_close(labels[i], proportions)
        pasted += int((sources != i).any())
    assert pasted == 8


def test_cutmix_and_randaugment_off() -> None:
    pixels, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    same = cutmix(pixels, labels, 0.0, 10)
    assert same[0] is pixels
    assert same[1] is labels
    assert randaugment(pixels, 0, 9) is pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_is_independent_per_image(channels: int) -> None:
    torch.manual_seed(0)
    original = torch.rand(1, channels, 8, 8)
    result = randaugment(original.expand(32, -1, -1, -1), 2, 15)
    assert result.shape == (32, channels, 8, 8)
    assert result.dtype == torch.float32
    assert 0 <= result.min() <= result.max() <= 1
    assert len({image.numpy().tobytes() for image in result}) > 16
    torch.manual_seed(0)
    torch.rand(1, channels, 8, 8)
    assert torch.equal(result, randaugment(original.expand(32, -1, -1, -1), 2, 15))
