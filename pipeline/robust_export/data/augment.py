"""Augmentation of training batches: shifts, flips, RandAugment and CutMix."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms import v2

from robust_export.utils.sharded_rng import sharded_sample


def augment(pixels: Tensor, shift: int, flip: bool, generator: Generator) -> Tensor:
    """Translate each image by up to `shift` pixels (zero-padded), and mirror it with probability 1/2.

    Args:
        pixels: [N, C, H, W].
        shift: largest translation in pixels, in each direction.
        flip: whether to mirror.
        generator: a CPU generator, the only source of randomness.

    Returns:
        [N, C, H, W], with independent changes of each image; `pixels` itself without shift and flip.
    """
    if shift:
        pixels = _translate(pixels, shift, generator)
    if flip:
        mirrored = sharded_sample(torch.rand, (len(pixels),), generator).lt(0.5).to(pixels.device)
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    return pixels


def randaugment(pixels: Tensor, operations: int, magnitude: int) -> Tensor:
    """Apply torchvision's RandAugment (Cubuk et al., arXiv 1909.13719) to each image.

    Args:
        pixels: [N, C, H, W] in [0, 1], C = 1 or 3, on the CPU; they are rounded to 8 bits.
        operations: number of random operations per image; 0 returns `pixels` itself.
        magnitude: of each operation, 0 to 30.

    Randomness comes from torch's global generator.
    """
    if not operations:
        return pixels
    transform = v2.RandAugment(operations, magnitude)
    uint8 = (pixels * 255).round().to(torch.uint8)
    return torch.stack([transform(image) for image in uint8]).float().div_(255)


def cutmix(pixels: Tensor, labels: Tensor, alpha: float, classes: int) -> tuple[Tensor, Tensor]:
    """Paste a box of another image into each image, and mix labels by area (Yun et al., arXiv 1905.04899).

    Args:
        pixels: [N, C, H, W].
        labels: [N].
        alpha: lambda ~ Beta(alpha, alpha) of each image remains; 0 returns both arguments unchanged.
        classes: K.

    Returns:
        [N, C, H, W] and label probabilities [N, K]. Randomness comes from torch's global generator.
    """
    if not alpha:
        return pixels, labels
    mixed: tuple[Tensor, Tensor] = v2.CutMix(alpha=alpha, num_classes=classes)(pixels, labels)
    return mixed


def _translate(pixels: Tensor, shift: int, generator: Generator) -> Tensor:
    n, c, h, w = pixels.shape
    padded = F.pad(pixels, (shift, shift, shift, shift))
    sample = partial(torch.randint, 0, 2 * shift + 1)
    offsets = sharded_sample(sample, (2, n), generator, dim=1).to(pixels.device)
    rows = offsets[0, :, None] + torch.arange(h, device=pixels.device)
    columns = offsets[1, :, None] + torch.arange(w, device=pixels.device)
    image = torch.arange(n, device=pixels.device)[:, None, None, None]
    channel = torch.arange(c, device=pixels.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
