"""An ONNX file as a classifier, run by ONNX's reference evaluator: NumPy, a node at a time.

It is slow, and it rounds to the format of the file after every operator. ONNX Runtime's CPU provider has no
half precision and computes such a file in float32: of its arithmetic there, this is the judge.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from robust_export.errors import ArtifactError, reason
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.onnx_model import (
    FeatureMaps,
    precision_of,
    read_model,
    sparta_nodes,
    with_activations,
)
from robust_export.runtimes.onnx_reference_ops import OPERATORS


class ReferenceClassifier:
    """Runs a self-contained ONNX file by the semantics of its nodes, a batch at a time.

    Args:
        path: a file with one input, float32 [N, C, H, W], whose first output is the logits [N, K].

    Raises:
        ArtifactError: if the file is no ONNX model, one of another signature, or has an operator that the
            evaluator lacks.
    """

    runtime = "reference"

    def __init__(self, path: str | Path, *, batch_size: int = 64) -> None:
        self.path = Path(path)
        self.batch_size = batch_size
        model = read_model(self.path)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        labels = metadata.get("robust_export.labels")
        self.labels: list[str] | None = None if labels is None else list(json.loads(labels))
        self.precision = precision_of(model)
        self.sparta_nodes = len(sparta_nodes(model))
        self._input, self.plane, self.classes = _signature(model, self.path)
        try:
            self._evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
        except Exception as error:  # the evaluator raises kinds of its own, and of everybody's
            raise ArtifactError(
                f"the reference evaluator cannot load {self.path}: {reason(error)}"
            ) from error

    def __call__(self, pixels: Pixels) -> Logits:
        chunks = range(0, len(pixels), self.batch_size)
        outputs = [self._run(pixels[start : start + self.batch_size]) for start in chunks]
        return np.concatenate(outputs)

    def activations(self, pixels: Pixels) -> list[FeatureMaps]:
        """Return what every activation gives for `pixels`, float32 [N, C, H, W] each, in graph order."""
        model, names = with_activations(read_model(self.path))
        evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
        with np.errstate(all="ignore"):
            planes = evaluator.run(names, {self._input: pixels})
        return [np.asarray(plane, np.float32) for plane in planes]

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


def _signature(model: onnx.ModelProto, path: Path) -> tuple[str, tuple[int, ...], int]:
    """Return the input's name, its plane (C, H, W), and the number of classes."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    kinds = [value.type.tensor_type for value in (*inputs, *model.graph.output[:1])]
    shapes = [[d.dim_value or d.dim_param or "?" for d in kind.shape.dim] for kind in kinds]
    if (
        [len(shape) for shape in shapes] != [4, 2]
        or kinds[0].elem_type != onnx.TensorProto.FLOAT
        or not all(isinstance(extent, int) for extent in (*shapes[0][1:], shapes[1][1]))
    ):
        raise ArtifactError(
            f"{path} is no classifier of images: inputs and logits are {shapes}; expected one input, float32 "
            "[N, C, H, W] with fixed C, H and W, and logits [N, K]"
        )
    (_, *plane), (_, classes) = shapes
    return inputs[0].name, tuple(int(extent) for extent in plane), int(classes)
