"""The protocol that every runtime implements: pixels in, logits out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]  # [N, C, H, W] in [0, 1]
Logits = npt.NDArray[np.float32]  # [N, K]


class Classifier(Protocol):
    """A model that maps pixels to logits: PyTorch, ONNX Runtime, TensorRT or a server.

    It normalises the pixels itself, so an attack's epsilon means the same for every runtime.
    """

    runtime: str  # "pytorch", "onnxruntime", ...
    precision: str  # "fp32", "fp16", "bf16" or "int8"; "unknown" for a server

    def __call__(self, pixels: Pixels) -> Logits:
        """Return the logits, float32 [N, K], of float32 pixels [N, C, H, W] in [0, 1]."""
        ...


class Artifact(Classifier, Protocol):
    """A classifier that runs an exported file or calls a served model."""

    input_shape: tuple[int, ...]  # C, H, W
    classes: int  # K
    sparta_nodes: int

    @property
    def labels(self) -> list[str] | None:
        """The labels of the logits, None if the artifact does not hold them."""
        ...

    def fused_nodes(self) -> int:
        """Return the number of Sparta nodes that a fused kernel ran."""
        ...
