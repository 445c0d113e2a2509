"""Learnt pointwise activations that neither torch nor timm has."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ParametricShiftedSiLU(nn.Module):
    """PSSiLU(x) = x * (sigmoid(alpha * x) - beta) / (1 - beta), alpha and beta learnt; it starts as SiLU.

    Dai, Mahloujifar & Mittal, "Parameterizing activation functions for adversarial robustness",
    arXiv 2110.05626. alpha is how sharply it bends, beta (below 1) how far it rises for negative x.

    Shape: any, kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(()))
        self.beta = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.sigmoid(self.alpha * x) - self.beta) / (1 - self.beta)
