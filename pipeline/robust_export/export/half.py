"""The number formats of 16 bits, and weights rounded to them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from robust_export.errors import UnsupportedModel

FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Half:
    """A number format of 16 bits."""

    name: str
    element: int  # of onnx.TensorProto
    schema: str  # as operator schemas write it
    dtype: torch.dtype


HALVES = {
    "fp16": Half("fp16", TensorProto.FLOAT16, "tensor(float16)", torch.float16),
    "bf16": Half("bf16", TensorProto.BFLOAT16, "tensor(bfloat16)", torch.bfloat16),
}


def cast(tensor: onnx.TensorProto, name: str, half: Half) -> onnx.TensorProto:
    """Return a float32 tensor rounded to half precision, to nearest, ties to even.

    A single number that would become 0, such as the 1e-12 that keeps a division from 0 / 0, becomes the
    format's smallest instead.

    Raises:
        UnsupportedModel: if a value is not finite, or too large for the format.
    """
    wide = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    narrow = wide.to(half.dtype)
    if not narrow.isfinite().all():
        limit = torch.finfo(half.dtype).max
        raise UnsupportedModel(
            f"{tensor.name} has {wide.abs().max():g}, and {half.name} ends at {limit:g}; expected finite "
            "values within that: export with --precision fp32" + (" or bf16" if half.name == "fp16" else "")
        )
    if wide.numel() == 1 and wide != 0 and narrow == 0:
        limits = torch.finfo(half.dtype)
        narrow = (wide.sign() * limits.tiny * limits.eps).to(half.dtype)
    raw = narrow.flatten().view(torch.int16).numpy().astype("<i2").tobytes()
    return helper.make_tensor(name, half.element, list(tensor.dims), raw, raw=True)


def constants_to_initialisers(graph: onnx.GraphProto) -> None:
    """Replace Constant nodes that give float32 by initialisers, so that there is one kind of weight."""
    kept = []
    for node in graph.node:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        value = next(iter(given.values())) if node.op_type == "Constant" else None
        if isinstance(value, onnx.TensorProto) and value.data_type == FLOAT:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        elif given.keys() & {"value_float", "value_floats"} and node.op_type == "Constant":
            floats = [value] if isinstance(value, float) else list(value or ())
            dims = () if isinstance(value, float) else (len(floats),)
            graph.initializer.append(helper.make_tensor(node.output[0], FLOAT, dims, floats))
        else:
            kept.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
