"""A PyTorch network as a classifier: the source that artifacts are compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from robust_export.classifier import Logits, Pixels


class PyTorchClassifier:
    """Runs a module in eval mode, a batch at a time."""

    runtime = "pytorch"
    precision = "fp32"

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu", batch_size: int = 256) -> None:
        self.module = module.to(device).eval()
        self.device = torch.device(device)
        self.batch_size = batch_size

    def __call__(self, pixels: Pixels) -> Logits:
        with torch.inference_mode():
            chunks = torch.from_numpy(pixels).split(self.batch_size)
            outputs = [self.module(chunk.to(self.device)).float().cpu() for chunk in chunks]
        return np.concatenate([output.numpy() for output in outputs])
