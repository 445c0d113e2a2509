"""What ONNX's own operator schemas say about number formats."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import onnx
from onnx import defs

from robust_export.nn.operator import DOMAIN, OPERATOR

Formats = tuple[list[bool], list[bool]]  # of each input and output: whether it takes the other format


def formats(node: onnx.NodeProto, opsets: Mapping[str, int], floats: Container[str], other: str) -> Formats:
    """Return which inputs and outputs of a float32 node are of another format when it is asked to use it.

    An input or output is, where its type is a variable of the schema that the format may take. An output
    whose variable no float32 input binds stays what an attribute says: those of Cast and ConstantOfShape.
    Sparta takes every format; an operator that has no schema takes float32.

    Args:
        floats: the names of values that are float32 tensors.
        other: the format as schemas write it, such as "tensor(float16)".
    """
    if (node.domain, node.op_type) == (DOMAIN, OPERATOR):
        return [True] * len(node.input), [True] * len(node.output)
    try:
        schema = defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except (defs.SchemaError, KeyError):
        return [False] * len(node.input), [False] * len(node.output)
    free = {c.type_param_str for c in schema.type_constraints if other in c.allowed_type_strs}
    inputs = [_formal(schema.inputs, i) for i in range(len(node.input))]
    outputs = [_formal(schema.outputs, i) for i in range(len(node.output))]
    bound = {variable for name, variable in zip(node.input, inputs, strict=True) if name in floats}
    return [v in free for v in inputs], [v in free & bound for v in outputs]


def _formal(parameters: Sequence[defs.OpSchema.FormalParameter], position: int) -> str:
    """Return the type, or its variable, of the parameter at a position; the last one may be repeated."""
    return parameters[min(position, len(parameters) - 1)].type_str
