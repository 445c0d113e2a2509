"""The ONNX function body of Sparta, with which every stock runtime runs a file with Sparta nodes.

A runtime with a kernel for `ai.sparta::Sparta` runs that. Others inline this body: the formula of
`robust_export.nn.sparta` in ONNX's standard operators.
"""

from __future__ import annotations

import onnx
import onnx.parser

from robust_export.nn.onnx_operator import DOMAIN, OPERATOR, VERSION
from robust_export.runtimes.onnx_model import sparta_nodes

# SAME_UPPER with stride 1 and odd k pads k // 2 zeros on every side.
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
    """Return Sparta as a model-local function of an opset's standard operators.

    Inputs x [N, C, H, W], weight [C, 1, k, k], bias [C]; output y [N, C, H, W] of x's type; attribute
    `channels` = C. The arithmetic is in float32 for every type of x.
    """
    text = BODY.format(domain=DOMAIN, operator=OPERATOR, opset=opset)
    return onnx.parser.parse_function(text)


def add_sparta_function(model: onnx.ModelProto) -> int:
    """Add the function to a model with Sparta nodes, at the model's opset; return the number of nodes."""
    nodes = sparta_nodes(model)
    if nodes:
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        model.functions.append(sparta_function(opsets[""]))
        if DOMAIN not in opsets:
            model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
    return len(nodes)
