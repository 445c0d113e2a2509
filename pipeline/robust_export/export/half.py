"""The 16-bit floating-point types, and weights rounded to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from robust_export.errors import UnsupportedModel

FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class HalfType:
    """A 16-bit floating-point type.

    Attributes:
        name: the precision, "fp16" or "bf16".
        element: the value of onnx.TensorProto.DataType.
        schema: the type in ONNX's operator schemas.
        dtype: the torch dtype.
    """

    name: str
    element: int
    schema: str
    dtype: torch.dtype


HALF_TYPES = {
    "fp16": HalfType("fp16", TensorProto.FLOAT16, "tensor(float16)", torch.float16),
    "bf16": HalfType("bf16", TensorProto.BFLOAT16, "tensor(bfloat16)", torch.bfloat16),
}


def cast_tensor(tensor: onnx.TensorProto, name: str, half: HalfType) -> onnx.TensorProto:
    """Return a float32 tensor rounded to nearest, ties to even, under a new name.

    A scalar that would become 0, such as the 1e-12 that prevents a division by 0, becomes the type's smallest
    subnormal number instead.

    Raises:
        UnsupportedModel: if a value is not finite or exceeds the type's range.
    """
    exact = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    rounded = exact.to(half.dtype)
    limits = torch.finfo(half.dtype)
    if not rounded.isfinite().all():
        raise UnsupportedModel(
            f"{tensor.name} has {exact.abs().max():g}; the largest finite value of {half.name} is "
            f"{limits.max:g}. Export with --precision fp32" + (" or bf16" * (half.name == "fp16"))
        )
    if exact.numel() == 1 and exact != 0 and rounded == 0:
        rounded = (exact.sign() * limits.tiny * limits.eps).to(half.dtype)
    raw = rounded.flatten().view(torch.int16).numpy().astype("<i2").tobytes()
    return helper.make_tensor(name, half.element, list(tensor.dims), raw, raw=True)


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Replace the Constant nodes that hold float32 values by initialisers."""
    nodes = []
    for node in graph.node:
        tensor = _float_constant(node) if node.op_type == "Constant" else None
        if tensor is None:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        else:
            graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(nodes)


def _float_constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the float32 tensor of a Constant node, None for another type."""
    attribute = node.attribute[0]
    value: Any = helper.get_attribute_value(attribute)
    if attribute.name == "value" and value.data_type == FLOAT:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        return tensor
    if attribute.name == "value_float":
        return helper.make_tensor(node.output[0], FLOAT, (), [value])
    if attribute.name == "value_floats":
        return helper.make_tensor(node.output[0], FLOAT, (len(value),), value)
    return None
