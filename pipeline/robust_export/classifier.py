"""The one thing that verification needs of a model, whatever runs it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]  # [N, C, H, W] in [0, 1]
Logits = npt.NDArray[np.float32]  # [N, K]


class Classifier(Protocol):
    """Pixels to logits: PyTorch, ONNX Runtime, TensorRT or a server.

    Normalisation is inside, so that an attack's epsilon means the same everywhere.
    """

    runtime: str  # "pytorch", "onnxruntime", ...
    precision: str  # "fp32", "fp16", "bf16", "int8"

    def __call__(self, pixels: Pixels) -> Logits:
        """Return the logits, float32 [N, K], of float32 pixels [N, C, H, W] in [0, 1]."""
        ...
