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
    precision: str  # "fp32", "fp16", "bf16", "int8"; "unknown" where only a server knows

    def __call__(self, pixels: Pixels) -> Logits:
        """Return the logits, float32 [N, K], of float32 pixels [N, C, H, W] in [0, 1]."""
        ...


class Artifact(Classifier, Protocol):
    """A classifier that was exported, or is served, and says what it is."""

    plane: tuple[int, ...]  # C, H, W of the images it takes
    classes: int  # K
    sparta_nodes: int

    @property
    def labels(self) -> list[str] | None:
        """The labels of the logits, None where it does not say."""
        ...

    def fused_nodes(self) -> int:
        """Return how many Sparta nodes a fused kernel really ran."""
        ...
