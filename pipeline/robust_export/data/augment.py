"""Random changes of training images that leave their class as it is, batch by batch."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms import v2

from robust_export.utils.sharded_rng import sharded_sample


def augment(pixels: Tensor, shift: int, flip: bool, generator: Generator) -> Tensor:
    """Translate each image by up to `shift` pixels (zero-padded) and mirror each with chance 1/2.

    Args:
        pixels: [N, C, H, W].
        generator: on the CPU; all randomness comes from it.

    Returns:
        [N, C, H, W]; each image is changed by itself. Without shift and flip, `pixels` itself.
    """
    if shift:
        pixels = _translate(pixels, shift, generator)
    if flip:
        mirrored = sharded_sample(torch.rand, (len(pixels),), generator).lt(0.5).to(pixels.device)
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    return pixels


def randaugment(pixels: Tensor, operations: int, magnitude: int) -> Tensor:
    """Change each image by so many random operations (Cubuk et al., arXiv 1909.13719), by torchvision.

    Args:
        pixels: [N, C, H, W] in [0, 1], C = 1 or 3, on the CPU; rounded to 8 bits.
        operations: 0 returns `pixels` itself.
        magnitude: 0 to 30.

    Its randomness comes from torch's global generator.
    """
    if not operations:
        return pixels
    change = v2.RandAugment(operations, magnitude)
    raw = (pixels * 255).round().to(torch.uint8)
    return torch.stack([change(image) for image in raw]).float().div_(255)


def cutmix(pixels: Tensor, labels: Tensor, alpha: float, classes: int) -> tuple[Tensor, Tensor]:
    """Paste a box of another image into each, and mix the labels by area (Yun et al., arXiv 1905.04899).

    Args:
        labels: [N].
        alpha: the box leaves a part lambda ~ Beta(alpha, alpha); 0 returns both as they are.

    Returns:
        [N, C, H, W] and probabilities [N, classes]. Randomness comes from torch's global generator.
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
