"""An ONNX file as a classifier, run node by node in NumPy by ONNX's reference evaluator.

It is slow, but it rounds to the file's precision after every operator. ONNX Runtime's CPU provider has no
half-precision arithmetic and computes such files in float32, so this runtime judges them on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx.reference import ReferenceEvaluator

from robust_export.errors import ArtifactError, reason
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.onnx_model import (
    FeatureMaps,
    expose_activations,
    model_precision,
    read_model,
    read_signature,
    sparta_nodes,
)
from robust_export.runtimes.onnx_reference_ops import OPERATORS


class ReferenceClassifier:
    """Run a self-contained ONNX file by the definition of its operators, in batches.

    Args:
        path: a file with one input, float32 [N, C, H, W], and the logits [N, K] as first output.

    Raises:
        ArtifactError: if the file is not an ONNX file, has another signature, or has an operator that the
            evaluator lacks.
    """

    runtime = "reference"

    def __init__(self, path: str | Path, *, batch_size: int = 64) -> None:
        self.path = Path(path)
        self.batch_size = batch_size
        model = read_model(self.path)
        signature = read_signature(model, self.path)
        self._input = signature.input
        self.input_shape, self.classes, self.labels = signature.shape, signature.classes, signature.labels
        self.precision = model_precision(model)
        self.sparta_nodes = len(sparta_nodes(model))
        try:
            self._evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
        except Exception as error:  # the evaluator's own types, and any that an operator raises
            raise ArtifactError(
                f"the reference evaluator cannot load {self.path}: {reason(error)}"
            ) from error

    def __call__(self, pixels: Pixels) -> Logits:
        starts = range(0, len(pixels), self.batch_size)
        return np.concatenate([self._run(pixels[start : start + self.batch_size]) for start in starts])

    def activations(self, pixels: Pixels) -> list[FeatureMaps]:
        """Return the feature maps after every activation, float32 [N, C, H, W] each, in graph order."""
        model, names = expose_activations(read_model(self.path))
        evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
        with np.errstate(all="ignore"):
            feature_maps = evaluator.run(names, {self._input: pixels})
        return [np.asarray(each, np.float32) for each in feature_maps]

    def fused_nodes(self) -> int:
        """Return 0: the evaluator runs the function body."""
        return 0

    def _run(self, pixels: Pixels) -> Logits:
        try:
            with np.errstate(all="ignore"):  # half precision overflows to infinity, as on hardware
                outputs: Any = self._evaluator.run(None, {self._input: np.ascontiguousarray(pixels)})
        except Exception as error:
            raise ArtifactError(f"the reference evaluator cannot run {self.path}: {reason(error)}") from error
        return np.asarray(outputs[0], np.float32)
