"""The ONNX function that makes a file with Sparta nodes run in every stock runtime.

A runtime that knows `ai.sparta::Sparta` runs its kernel; any other inlines this body, which is the
formula of `robust_export.nn.sparta` in ONNX's own operators.
"""

from __future__ import annotations

import onnx
import onnx.parser

from robust_export.nn.operator import DOMAIN, OPERATOR, VERSION
from robust_export.runtimes.onnx_model import sparta_nodes

# SAME_UPPER with stride 1 and k odd is a zero padding of k // 2 on every side.
BODY = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{operator} <channels> (x, weight, bias) => (y)
{{
    wide_x = Cast <to = 1> (x)
    wide_weight = Cast <to = 1> (weight)
    wide_bias = Cast <to = 1> (bias)
    attention = Conv <group : int = @channels, auto_pad = "SAME_UPPER"> (wide_x, wide_weight, wide_bias)
    half_gate = Sigmoid (attention)
    two = Constant <value_float = 2.0> ()
    gate = Mul (half_gate, two)
    rectified = Relu (wide_x)
    product = Mul (rectified, gate)
    y = CastLike (product, x)
}}
"""


def sparta_function(opset: int) -> onnx.FunctionProto:
    """Return Sparta as a model-local function over the standard operators of an opset.

    Inputs x [N, C, H, W], weight [C, 1, k, k], bias [C]; output y [N, C, H, W] of x's type;
    attribute `channels` = C. The gate is computed in float32 whatever x is.
    """
    text = BODY.format(domain=DOMAIN, operator=OPERATOR, opset=opset)
    return onnx.parser.parse_function(text)


def add_sparta_function(model: onnx.ModelProto) -> int:
    """Add the function to a model that uses the operator; return how many nodes do.

    The model's opset of the default domain is the function's.
    """
    nodes = sparta_nodes(model)
    if nodes:
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        model.functions.append(sparta_function(opsets[""]))
        if DOMAIN not in opsets:
            model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
    return len(nodes)
