"""Sparta in ONNX Runtime's blocked layout, so that nothing is reordered around it.

On a CPU, ONNX Runtime keeps the planes of convolutions in blocks of 8 or 16 channels,
[N, C / block, H, W, block], and puts a reordering before and after every operator that does not know this
layout: 17 pairs in a ResNet-18 whose activation is a custom operator. Its layout pass cannot be taught a
custom operator, but it knows a depthwise convolution of Sparta's shape. So:

1. every Sparta node is replaced by such a convolution, whose weights and biases are tracers: counted
   through, so that each value says where it came from;
2. ONNX Runtime optimises that graph and writes it out;
3. each tracer is found again by its values, which also show the block and that no other optimisation
   touched it, and becomes `SpartaBlocked` (or `Sparta`, where the layout stayed), with its real weights.

The result is for the machine and the ONNX Runtime that made it: it is run at once, and never kept.
A tracer that is not found as expected leaves its site as it was: Sparta on planes, reordered around.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from robust_export.nn.operator import DOMAIN, OPERATOR

Array = npt.NDArray[np.float32]

BLOCKED = "SpartaBlocked"
NCHWC = "com.microsoft.nchwc"  # the domain of ONNX Runtime's blocked operators
BLOCKS = (8, 16)
SILENT = 4  # fatal errors alone: what fails here is tried again in the plain way
KERNEL = 3  # of a tracer, whatever Sparta's own is; 1 would not show how its weights were reordered
LARGEST = 1 << 24  # up to here float32 counts without gaps


@dataclass(frozen=True)
class Site:
    """A Sparta node, and the tracers that stand for its parameters."""

    output: str  # the node's, which names it
    weight: str  # initialisers that the node really has
    bias: str
    traced_weight: Array  # [C, 1, 3, 3], counted from 0
    traced_bias: Array  # [C], counted from where the site before ended


def blocked_graph(model: onnx.ModelProto, optimise: Callable[[bytes, Path], None]) -> onnx.ModelProto | None:
    """Return the model, optimised by ONNX Runtime, with Sparta in its blocked layout.

    A site whose tracer was fused into something is left as it is in another attempt.

    Args:
        model: a float32 model with Sparta nodes.
        optimise: starts a session on serialised bytes that writes its optimised graph to a path.

    Returns:
        None where no Sparta node has blocked planes around it.
    """
    left: set[str] = set()
    while True:
        traced = copy.deepcopy(model)
        sites = _trace(traced, left)
        if not sites:
            return None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "optimised.onnx"
            optimise(traced.SerializeToString(), file)
            optimised = onnx.load(file)
        lost = _restore(optimised, sites)
        if not lost:
            break
        left |= lost
    if not any(node.op_type == BLOCKED for node in optimised.graph.node):
        return None
    there = {i.name for i in optimised.graph.initializer}
    wanted = {name for site in sites for name in (site.weight, site.bias)} - there
    optimised.graph.initializer.extend(i for i in model.graph.initializer if i.name in wanted)
    if DOMAIN not in {entry.domain for entry in optimised.opset_import}:
        optimised.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return optimised


def blocked_session(
    model: onnx.ModelProto, options: Callable[[], ort.SessionOptions], providers: list[str]
) -> Any | None:
    """Return a session that runs the model with Sparta in the blocked layout, None if it cannot be had.

    Args:
        options: makes session options with the kernel's library registered.
    """

    def optimise(content: bytes, file: Path) -> None:
        own = options()
        own.log_severity_level = SILENT
        own.optimized_model_filepath = str(file)
        ort.InferenceSession(content, own, providers=providers)

    try:
        graph = blocked_graph(model, optimise)
        if graph is None:
            return None
        own = options()
        own.log_severity_level = SILENT
        own.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised already
        return ort.InferenceSession(graph.SerializeToString(), own, providers=providers)
    except Exception:  # the plain session is there to say what is wrong, if anything is
        return None


def _trace(model: onnx.ModelProto, left: set[str]) -> list[Site]:
    """Turn Sparta nodes, but for those `left`, into depthwise convolutions with tracers; return them."""
    parameters = {i.name: i for i in model.graph.initializer}
    sites: list[Site] = []
    counted = 0
    for node in model.graph.node:
        if node.domain != DOMAIN or node.op_type != OPERATOR or node.output[0] in left:
            continue
        weight, bias = (parameters.get(name) for name in node.input[1:])
        if weight is None or bias is None or weight.data_type != onnx.TensorProto.FLOAT:
            continue
        channels = weight.dims[0]
        shape = (channels, 1, KERNEL, KERNEL)
        if math.prod(shape) + counted >= LARGEST:
            continue
        site = Site(
            node.output[0], weight.name, bias.name,
            np.arange(math.prod(shape), dtype=np.float32).reshape(shape),
            np.arange(counted, counted + channels, dtype=np.float32),
        )  # fmt: skip
        names = [f"{DOMAIN}.tracer.{len(sites)}.{part}" for part in ("weight", "bias")]
        values = (site.traced_weight, site.traced_bias)
        model.graph.initializer.extend(map(numpy_helper.from_array, values, names))
        traced = helper.make_node(
            "Conv", [node.input[0], *names], list(node.output), node.name, group=channels,
            kernel_shape=[KERNEL, KERNEL], pads=[KERNEL // 2] * 4,
        )  # fmt: skip
        node.CopyFrom(traced)
        sites.append(site)
        counted += channels
    return sites


def _restore(model: onnx.ModelProto, sites: list[Site]) -> set[str]:
    """Turn every tracer back into Sparta; return the outputs of those that are not as they were left."""
    values = {i.name: i for i in model.graph.initializer}
    waiting = {float(site.traced_bias[0]): site for site in sites}
    for node in model.graph.node:
        if len(node.input) < 3 or node.input[2] not in values:
            continue
        bias = numpy_helper.to_array(values[node.input[2]])
        site = waiting.get(float(bias.flat[0])) if bias.size else None
        if site is None or not np.array_equal(bias, site.traced_bias):
            continue  # a convolution of the network's own
        if node.input[1] not in values or not _untouched(node, site):
            continue
        block = _block(values[node.input[1]], site)
        if block is None or node.domain != (NCHWC if block > 1 else ""):
            continue  # such as a convolution in yet another layout
        operator = BLOCKED if block > 1 else OPERATOR
        attributes: dict[str, Any] = {"block": block} if block > 1 else {"channels": len(bias)}
        restored = helper.make_node(
            operator, [node.input[0], site.weight, site.bias], list(node.output), node.name, domain=DOMAIN,
            **attributes,
        )  # fmt: skip
        node.CopyFrom(restored)
        del waiting[float(site.traced_bias[0])]
    left = {node.input[2] for node in model.graph.node if len(node.input) > 2} & values.keys()
    for name in left:  # a tracer that is read still, by whatever it was copied or fused into
        bias = numpy_helper.to_array(values[name])
        for site in sites:
            if np.array_equal(bias, site.traced_bias):
                waiting[float(site.traced_bias[0])] = site
    return {site.output for site in waiting.values()}


def _block(weight: onnx.TensorProto, site: Site) -> int | None:
    """Return the channels of a block that the weights were reordered to; 1 for none, None for neither."""
    found, expected = numpy_helper.to_array(weight).ravel(), site.traced_weight
    if np.array_equal(found, expected.ravel()):
        return 1
    channels = len(expected)
    for block in BLOCKS:
        if channels % block == 0:
            turned = expected.reshape(channels // block, block, -1).transpose(0, 2, 1)
            if np.array_equal(found, turned.ravel()):
                return block
    return None


def _untouched(node: onnx.NodeProto, site: Site) -> bool:
    """Return whether the convolution is still the one that was put there, and nothing fused into it."""
    expected = {
        "group": len(site.traced_bias), "kernel_shape": [KERNEL, KERNEL], "pads": [KERNEL // 2] * 4,
        "strides": [1, 1], "dilations": [1, 1], "auto_pad": b"NOTSET",
    }  # fmt: skip
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (
        node.op_type == "Conv"
        and len(node.input) == 3
        and {"group", "kernel_shape", "pads"} <= attributes.keys()
        and all(expected.get(name) == value for name, value in attributes.items())
    )
