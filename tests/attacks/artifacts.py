"""Artifacts for tests of attacks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from robust_export.runtimes.classifier import Logits, Pixels


class ModuleArtifact:
    """A module as an artifact: arrays in, arrays out, no gradient.

    Attributes:
        queries: number of images it has been called with.
    """

    runtime, precision = "test", "fp32"

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.queries = 0

    def __call__(self, pixels: Pixels) -> Logits:
        self.queries += len(pixels)
        with torch.no_grad():
            logits: Logits = self.module(torch.from_numpy(pixels)).numpy()
        return logits


class NanArtifact(ModuleArtifact):
    """An artifact with nan logits for every second image."""

    def __call__(self, pixels: Pixels) -> Logits:
        logits = super().__call__(pixels)
        logits[::2] = np.nan
        return logits


def misclassified(artifact: ModuleArtifact, images: Tensor, labels: Tensor) -> list[bool]:
    """Return for each image whether the artifact misclassifies it."""
    wrong: list[bool] = (artifact(images.numpy()).argmax(1) != labels.numpy()).tolist()
    return wrong
