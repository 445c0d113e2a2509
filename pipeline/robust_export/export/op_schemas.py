"""Read from ONNX's operator schemas which inputs and outputs may be half precision."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import onnx
from onnx import defs

from robust_export.nn.onnx_operator import DOMAIN, OPERATOR

IsHalf = tuple[list[bool], list[bool]]  # for each input, for each output


def half_inputs_outputs(
    node: onnx.NodeProto, opsets: Mapping[str, int], floats: Container[str], half: str
) -> IsHalf:
    """Return which inputs and outputs of a float32 node are half when the node runs in half precision.

    They are those whose type is a variable of the schema that allows the half type. Outputs also need a
    float32 input of the same type variable: otherwise an attribute sets their type, as in Cast and
    ConstantOfShape. Sparta allows half everywhere; an operator without schema nowhere.

    Args:
        opsets: domain to version.
        floats: the names of the float32 values.
        half: the type as schemas write it, such as "tensor(float16)".
    """
    if (node.domain, node.op_type) == (DOMAIN, OPERATOR):
        return [True] * len(node.input), [True] * len(node.output)
    try:
        schema = defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except (defs.SchemaError, KeyError):
        return [False] * len(node.input), [False] * len(node.output)
    allowing = {c.type_param_str for c in schema.type_constraints if half in c.allowed_type_strs}
    inputs = [_type_of(schema.inputs, i) for i in range(len(node.input))]
    outputs = [_type_of(schema.outputs, i) for i in range(len(node.output))]
    bound = {variable for name, variable in zip(node.input, inputs, strict=True) if name in floats}
    return [v in allowing for v in inputs], [v in allowing & bound for v in outputs]


def _type_of(parameters: Sequence[defs.OpSchema.FormalParameter], position: int) -> str:
    """Return the type, or type variable, of a parameter; the last one may be variadic."""
    return parameters[min(position, len(parameters) - 1)].type_str
