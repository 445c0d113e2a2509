"""The network that attacks differentiate during training and validation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robust_export.recipe.schema import Train
from robust_export.training.bn_folding import FoldedCopy
from robust_export.training.precision import ScaledGradient, autocast


class AttackedModel:
    """Prepares a model for attacks: eval mode, and the copy and precision that the section [train] sets.

    Attributes:
        folded: the copy that is attacked with `fold_norms` or `compile`; None if it is the model itself.
    """

    def __init__(self, model: nn.Module, settings: Train, device: torch.device, example: Tensor) -> None:
        self.amp, self.device = settings.amp, device
        self.folded: FoldedCopy | None = None
        if settings.fold_norms or settings.compile:
            self.folded = FoldedCopy(model, example, fold=settings.fold_norms, compiled=settings.compile)

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yield the network to attack for `model`, whose weights must not change within the context."""
        model.eval()
        network: nn.Module = model
        if self.folded is not None:
            self.folded.copy_weights(model)
            network = self.folded.eval()
        if self.amp == "fp16":
            network = ScaledGradient(network).eval()
        with autocast(self.amp, self.device):
            yield network
