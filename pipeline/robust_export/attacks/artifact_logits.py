"""Logits of an artifact as tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robust_export.runtimes.classifier import Classifier, Logits, Pixels


def finite(logits: Logits) -> Logits:
    """Return the logits [N, K] with every row that holds nan or inf replaced by zeros."""
    return np.where(np.isfinite(logits).all(axis=1, keepdims=True), logits, np.float32(0))


def finite_logits(artifact: Classifier, pixels: Tensor) -> Tensor:
    """Return the artifact's logits [N, K] on the device of `pixels`, non-finite rows replaced by zeros."""
    return torch.from_numpy(finite(artifact(to_array(pixels)))).to(pixels.device)


def correctly_classified(artifact: Classifier, pixels: Tensor, labels: Tensor) -> Tensor:
    """Return for each image whether its logits are finite and its label's the largest, bool [N]."""
    logits = artifact(to_array(pixels))
    correct = np.isfinite(logits).all(axis=1) & (logits.argmax(1) == labels.cpu().numpy())
    return torch.from_numpy(correct).to(pixels.device)


def to_array(pixels: Tensor) -> Pixels:
    """Return the pixels as a float32 array."""
    array: Pixels = pixels.detach().cpu().numpy().astype(np.float32, copy=False)
    return array
