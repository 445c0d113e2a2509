"""Read ONNX files: signature and labels, Sparta nodes, precision of the arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from robust_export.errors import ArtifactError
from robust_export.nn.onnx_operator import DOMAIN, OPERATOR

FeatureMaps = npt.NDArray[np.float32]  # [N, C, H, W]

LABELS_KEY = "robust_export.labels"  # of the file's metadata: a JSON list of strings
MATRIX_PRODUCTS = ("Conv", "Gemm", "MatMul")
INTEGER_OPERATORS = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger")  # prefixes of operator names
HALF_PRECISIONS = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
PROFILE_TYPES = {"fp16": "float16", "bf16": "bfloat16"}  # as ONNX Runtime's profile writes them


@dataclass(frozen=True)
class Signature:
    """The input and output of an image classifier.

    Attributes:
        input: the input's name.
        shape: C, H, W of the images.
        classes: K, the number of logits.
        labels: of the logits, None if the file does not hold them.
    """

    input: str
    shape: tuple[int, ...]
    classes: int
    labels: list[str] | None


def read_model(path: Path) -> onnx.ModelProto:
    """Return the model of an ONNX file.

    Raises:
        ArtifactError: if the file cannot be parsed or has no nodes.
    """
    try:
        model = onnx.load(path)
    except (OSError, DecodeError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read as an ONNX file: {error}. Write it with `robust-export onnx`."
        ) from error
    if not model.graph.node:
        raise ArtifactError(
            f"{path} is not an ONNX file, or has no nodes. Write it with `robust-export onnx`."
        )
    return model


def read_signature(model: onnx.ModelProto, path: Path) -> Signature:
    """Return the signature of a classifier: float32 [N, C, H, W] to logits [N, K].

    Shapes that the file omits are inferred. N may be free; the other dimensions must be fixed.

    Raises:
        ArtifactError: if the model has another signature, or its labels are not JSON.
    """
    if not model.graph.output or not model.graph.output[0].type.tensor_type.HasField("shape"):
        model = onnx.shape_inference.infer_shapes(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    types = [value.type.tensor_type for value in (*inputs, *model.graph.output[:1])]
    shapes = [[d.dim_value or d.dim_param or "?" for d in type_.shape.dim] for type_ in types]
    if (
        [len(shape) for shape in shapes] != [4, 2]
        or types[0].elem_type != TensorProto.FLOAT
        or not all(isinstance(size, int) for size in (*shapes[0][1:], shapes[1][1]))
    ):
        raise ArtifactError(
            f"{path} is not an image classifier: inputs and logits have shapes {shapes}; expected one input, "
            "float32 [N, C, H, W] with fixed C, H and W, and logits [N, K]"
        )
    (_, *shape), (_, classes) = shapes
    return Signature(inputs[0].name, tuple(map(int, shape)), int(classes), _labels(model, path))


def _labels(model: onnx.ModelProto, path: Path) -> list[str] | None:
    metadata: dict[str, str] = {entry.key: entry.value for entry in model.metadata_props}
    text = metadata.get(LABELS_KEY, "null")
    try:
        labels = json.loads(text)
        return None if labels is None else list(labels)
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} has {text[:50]!r} as {LABELS_KEY}; expected a JSON list of strings"
        ) from error


def sparta_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the Sparta nodes of a model in graph order."""
    return [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]


def has_function(model: onnx.ModelProto) -> bool:
    """Return whether the model holds Sparta's function body."""
    return any((f.domain, f.name) == (DOMAIN, OPERATOR) for f in model.functions)


def drop_function(model: onnx.ModelProto) -> None:
    """Remove Sparta's function body; only a kernel or plugin can run the nodes then."""
    kept = [f for f in model.functions if (f.domain, f.name) != (DOMAIN, OPERATOR)]
    del model.functions[:]
    model.functions.extend(kept)


def expose_activations(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Add the feature maps after every activation as outputs; return the model and their names.

    Activations are the Sparta nodes, or the Relu nodes of a model without Sparta, in graph order.
    """
    nodes = sparta_nodes(model) or [n for n in model.graph.node if n.op_type == "Relu"]
    names = [node.output[0] for node in nodes]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return model, names


def model_precision(model: onnx.ModelProto) -> str:
    """Return the precision of the graph: "int8", "fp16", "bf16" or "fp32".

    A graph with QuantizeLinear or DequantizeLinear is int8. A graph whose convolutions, matrix products or
    Sparta nodes have half-precision weights is fp16 or bf16. The file's metadata may be wrong and is ignored.
    """
    nodes = model.graph.node
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes):
        return "int8"
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in nodes:
        for name in node.input if node.op_type in (*MATRIX_PRODUCTS, OPERATOR) else ():
            if types.get(name) in HALF_PRECISIONS:
                return HALF_PRECISIONS[types[name]]
    return "fp32"


def ran_in_precision(precision: str, events: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether ONNX Runtime's profile shows a convolution or matrix product in a precision.

    int8 requires an integer operator, fp16 and bf16 an operator with an input of that type.
    """
    return any(_event_ran_in(precision, event["args"]) for event in events)


def _event_ran_in(precision: str, arguments: Mapping[str, Any]) -> bool:
    operator = arguments["op_name"]
    if precision == "int8":
        return bool(operator.startswith(INTEGER_OPERATORS))
    types = {name for entry in arguments.get("input_type_shape", ()) for name in entry}
    is_product = any(name in operator for name in MATRIX_PRODUCTS)  # in: FusedConv is one
    return is_product and PROFILE_TYPES[precision] in types
