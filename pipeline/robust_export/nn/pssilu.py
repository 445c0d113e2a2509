"""PSSiLU, a learnable pointwise activation that neither torch nor timm has."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ParametricShiftedSiLU(nn.Module):
    """PSSiLU(x) = x * (sigmoid(alpha * x) - beta) / (1 - beta) with learnable scalars alpha and beta.

    It starts as SiLU (alpha = 1, beta = 0). alpha sets the sharpness of the bend, beta < 1 the height for
    negative x. From Dai, Mahloujifar & Mittal, "Parameterizing activation functions for adversarial
    robustness", arXiv 2110.05626.

    Shape: any, unchanged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(()))
        self.beta = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.sigmoid(self.alpha * x) - self.beta) / (1 - self.beta)
