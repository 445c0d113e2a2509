"""The torch module of every model: normalisation, then a backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PixelClassifier(nn.Module):
    """Normalisation followed by a backbone: pixels [N, C, H, W] in [0, 1] to logits [N, K]."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, backbone: nn.Module, mean: list[float], std: list[float], *,
        num_classes: int, image_size: int, in_chans: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.image_size = image_size
        self.in_chans = in_chans
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.backbone((pixels - self.mean) / self.std)
        return logits
