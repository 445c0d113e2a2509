"""Read an ONNX file, and tell what its graph holds: Sparta nodes, the precision of its arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from robust_export.errors import ArtifactError
from robust_export.nn.operator import DOMAIN, OPERATOR

FeatureMaps = npt.NDArray[np.float32]  # [N, C, H, W]

PRODUCTS = ("Conv", "Gemm", "MatMul")
HALVES = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
RAN = {"fp16": "float16", "bf16": "bfloat16"}  # as ONNX Runtime's profile writes formats
INTEGER = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger")  # how the names of integer operators begin


def read_model(path: Path) -> onnx.ModelProto:
    """Return the file's model.

    Raises:
        ArtifactError: if it is no ONNX file, or one without a node.
    """
    try:
        model = onnx.load(path)
    except (OSError, DecodeError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read as an ONNX file: {error}. Make it with `robust-export onnx`."
        ) from error
    if not model.graph.node:
        raise ArtifactError(
            f"{path} is not an ONNX file, or an empty one. Make it with `robust-export onnx`."
        )
    return model


def sparta_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return a model's Sparta nodes, in graph order."""
    return [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]


def has_function(model: onnx.ModelProto) -> bool:
    """Return whether the model holds Sparta's function body."""
    return any((f.domain, f.name) == (DOMAIN, OPERATOR) for f in model.functions)


def drop_function(model: onnx.ModelProto) -> None:
    """Leave out Sparta's function body, so that only a kernel or a plugin can run its nodes."""
    kept = [f for f in model.functions if (f.domain, f.name) != (DOMAIN, OPERATOR)]
    del model.functions[:]
    model.functions.extend(kept)


def with_activations(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model with its activations' planes as outputs, and their names in graph order.

    Activations are the Sparta nodes, or the ReLUs of a model without.
    """
    nodes = sparta_nodes(model) or [n for n in model.graph.node if n.op_type == "Relu"]
    names = [node.output[0] for node in nodes]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return model, names


def precision_of(model: onnx.ModelProto) -> str:
    """Return "int8", "fp16", "bf16" or "fp32".

    It is int8 where something is quantised, and half where a convolution, a product of matrices or Sparta
    has such weights. Metadata is not asked: it can be wrong.
    """
    nodes = model.graph.node
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes):
        return "int8"
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in nodes:
        for name in node.input if node.op_type in (*PRODUCTS, OPERATOR) else ():
            if kinds.get(name) in HALVES:
                return HALVES[kinds[name]]
    return "fp32"


def ran_in(precision: str, events: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a convolution or a product of matrices ran in a precision, by ONNX Runtime's profile.

    For int8 that is an operator on integers; for half precision one whose inputs were of that format.
    """
    for event in events:
        arguments = event["args"]
        operator = arguments["op_name"]
        if precision == "int8":
            ran = operator.startswith(INTEGER)
        else:
            formats = {kind for entry in arguments.get("input_type_shape", ()) for kind in entry}
            ran = any(name in operator for name in PRODUCTS) and RAN[precision] in formats  # FusedConv is one
        if ran:
            return True
    return False
