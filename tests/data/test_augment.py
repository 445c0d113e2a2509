"""Augmentation: small translations and mirror images, each image by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from robust_export.data.augment import augment

small = st.integers(1, 5)
seeds = st.integers(0, 2**63 - 1)


def random_images(n: int, c: int, h: int, w: int) -> Tensor:
    """Return images without a zero in them, so that padding can be told from them."""
    return torch.rand(n, c, h, w, generator=Generator().manual_seed(0)) + 0.5


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def translate(image: Tensor, down: int, right: int) -> Tensor:
    """Move [C, H, W] by whole pixels, zeros coming in: pixel by pixel, as its definition says."""
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
def test_every_image_is_a_translation_or_its_mirror_image(
    n: int, c: int, h: int, w: int, shift: int, flip: bool, seed: int
) -> None:
    images = random_images(n, c, h, w)
    before = images.clone()
    found = augment(images, shift, flip, seeded(seed))
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert torch.equal(images, before)
    for image, original in zip(found, images, strict=True):
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
    """600 equal images: each of the (2 shift + 1)^2 translations takes its share of them."""
    images = random_images(1, 2, h, w).expand(600, -1, -1, -1)
    found = augment(images, shift, False, seeded())
    ways = translations(images[0], shift)
    counts = [sum(torch.equal(image, way) for image in found) for way in ways.values()]
    assert sum(counts) == 600
    expected = 600 / len(ways)
    assert all(expected / 2 < count < expected * 2 for count in counts)


def test_about_half_are_mirrored() -> None:
    images = random_images(1000, 1, 3, 4)
    found = augment(images, 0, True, seeded())
    mirrored = found.eq(images.flip(3)).flatten(1).all(1)
    same = found.eq(images).flatten(1).all(1)
    assert torch.equal(mirrored, ~same)
    assert 420 < mirrored.sum() < 580


def test_a_shift_larger_than_the_image_may_empty_it() -> None:
    images = random_images(200, 1, 2, 3)
    found = augment(images, 4, False, seeded())
    sums = found.flatten(1).sum(1)
    assert sums.min() == 0
    assert sums.max() > 0


@given(seeds, seeds)
@settings(deadline=None)
def test_the_generator_alone_decides(seed: int, other: int) -> None:
    images = random_images(32, 1, 6, 5)
    torch.manual_seed(other)
    state = torch.get_rng_state()
    found = augment(images, 2, True, seeded(seed))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(augment(images, 2, True, seeded(seed)), found)
    if seed != other:
        assert not torch.equal(augment(images, 2, True, seeded(other)), found)


def test_the_next_batch_is_changed_otherwise() -> None:
    images, generator = random_images(32, 1, 6, 5), seeded()
    assert not torch.equal(augment(images, 2, True, generator), augment(images, 2, True, generator))


def test_a_batch_keeps_its_order() -> None:
    """Labels stay with their images: image i of the result comes from image i."""
    images = torch.arange(1.0, 51).view(50, 1, 1, 1).expand(-1, 1, 5, 5)
    found = augment(images, 2, True, seeded())
    assert torch.equal(found.flatten(1).amax(1), torch.arange(1.0, 51))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8])
def test_other_dtypes_are_kept(dtype: torch.dtype) -> None:
    images = random_images(4, 3, 5, 5).mul(100).to(dtype)
    assert augment(images, 1, True, seeded()).dtype == dtype
