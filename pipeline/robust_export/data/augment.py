"""Random changes of training images that leave their class as it is, batch by batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


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
        mirrored = torch.rand(len(pixels), generator=generator).lt(0.5).to(pixels.device)
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    return pixels


def _translate(pixels: Tensor, shift: int, generator: Generator) -> Tensor:
    n, c, h, w = pixels.shape
    padded = F.pad(pixels, (shift, shift, shift, shift))
    offsets = torch.randint(0, 2 * shift + 1, (2, n), generator=generator).to(pixels.device)
    rows = offsets[0, :, None] + torch.arange(h, device=pixels.device)
    columns = offsets[1, :, None] + torch.arange(w, device=pixels.device)
    image = torch.arange(n, device=pixels.device)[:, None, None, None]
    channel = torch.arange(c, device=pixels.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
