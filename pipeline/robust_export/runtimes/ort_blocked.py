"""Run Sparta in ONNX Runtime's blocked layout, without reorders around it.

On a CPU, ONNX Runtime keeps the feature maps of convolutions in blocks of 8 or 16 channels,
[N, C / block, H, W, block], and reorders them before and after every operator that does not support this
layout: 17 pairs of reorders in a ResNet-18 with a custom activation. Its layout pass cannot be extended to
a custom operator, but it supports a depthwise convolution, which has Sparta's inputs and shapes. Therefore:

1. Every Sparta node is replaced by a depthwise convolution whose weights and biases are numbered
   consecutively, so that each value identifies its position (a tracer).
2. ONNX Runtime optimises that graph and writes it to a file.
3. Each tracer is found by its values. They also show the block size, and whether another optimisation
   changed the convolution. The tracer becomes `SpartaBlocked`, or `Sparta` if its layout was not changed,
   with the real weights.

The result depends on the machine and the ONNX Runtime version, so it is run at once and never stored. If a
tracer is changed by another optimisation, its Sparta node is left as it is, with reorders around it.
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
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    NotImplemented,  # noqa: A004 (ONNX Runtime's exception)
    RuntimeException,
)

from robust_export.errors import reason
from robust_export.nn.onnx_operator import DOMAIN, OPERATOR

Array = npt.NDArray[np.float32]

BLOCKED = "SpartaBlocked"
NCHWC = "com.microsoft.nchwc"  # the domain of ONNX Runtime's operators in the blocked layout
BLOCKS = (8, 16)
FATAL = 4  # log level: errors are raised, so ONNX Runtime need not print them too
KERNEL = 3  # kernel size of a tracer, for any Sparta; size 1 would not show the order of its weights
MAX_COUNT = 1 << 24  # float32 represents every integer up to here
SESSION_ERRORS = (Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException)


class BlockedLayoutError(Exception):
    """ONNX Runtime refused the graph with tracers, or the graph made from it."""


@dataclass(frozen=True)
class Site:
    """A Sparta node and the tracer parameters that replace its own."""

    output: str  # name of the node's output, which identifies it
    weight: str  # names of the node's real parameters
    bias: str
    traced_weight: Array  # [C, 1, 3, 3], counted from 0
    traced_bias: Array  # [C], counted on from the previous site


def blocked_graph(model: onnx.ModelProto, optimise: Callable[[bytes, Path], None]) -> onnx.ModelProto | None:
    """Return the model as optimised by ONNX Runtime, with Sparta in the blocked layout.

    If a tracer was changed by another optimisation, the graph is optimised again without that tracer.

    Args:
        model: a float32 model with Sparta nodes.
        optimise: a function (serialised model, path) that starts a session which writes its optimised graph.

    Returns:
        None if no Sparta node has feature maps in the blocked layout around it.
    """
    excluded: set[str] = set()
    while True:
        traced = copy.deepcopy(model)
        sites = _insert_tracers(traced, excluded)
        if not sites:
            return None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "optimised.onnx"
            optimise(traced.SerializeToString(), file)
            optimised = onnx.load(file)
        changed = _replace_tracers(optimised, sites)
        if not changed:
            break
        excluded |= changed
    if not any(node.op_type == BLOCKED for node in optimised.graph.node):
        return None
    present = {i.name for i in optimised.graph.initializer}
    missing = {name for site in sites for name in (site.weight, site.bias)} - present
    optimised.graph.initializer.extend(i for i in model.graph.initializer if i.name in missing)
    if DOMAIN not in {entry.domain for entry in optimised.opset_import}:
        optimised.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return optimised


def blocked_session(
    model: onnx.ModelProto, options: Callable[[], ort.SessionOptions], providers: list[str]
) -> Any | None:
    """Return a session that runs the model with Sparta in the blocked layout.

    Args:
        model: a float32 model with Sparta nodes.
        options: a function that returns new session options with the kernel's library registered.
        providers: execution providers of the session.

    Returns:
        None if ONNX Runtime does not use the blocked layout around any Sparta node.

    Raises:
        BlockedLayoutError: if ONNX Runtime refuses a rewritten graph.
    """

    def optimise(content: bytes, file: Path) -> None:
        settings = options()
        settings.log_severity_level = FATAL
        settings.optimized_model_filepath = str(file)
        _start_session(content, settings, providers)

    graph = blocked_graph(model, optimise)
    if graph is None:
        return None
    settings = options()
    settings.log_severity_level = FATAL
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # already optimised
    return _start_session(graph.SerializeToString(), settings, providers)


def _start_session(content: bytes, settings: ort.SessionOptions, providers: list[str]) -> Any:
    try:
        return ort.InferenceSession(content, settings, providers=providers)
    except SESSION_ERRORS as error:
        raise BlockedLayoutError(reason(error)) from error


def _insert_tracers(model: onnx.ModelProto, excluded: set[str]) -> list[Site]:
    """Replace Sparta nodes by depthwise convolutions with tracer parameters; return their sites.

    Sites in `excluded`, with parameters that are no float32 initializers, or too large to count, are kept.
    """
    parameters = {i.name: i for i in model.graph.initializer}
    sites: list[Site] = []
    count = 0  # of the biases so far
    for node in model.graph.node:
        if node.domain != DOMAIN or node.op_type != OPERATOR or node.output[0] in excluded:
            continue
        weight, bias = (parameters.get(name) for name in node.input[1:])
        if weight is None or bias is None or weight.data_type != onnx.TensorProto.FLOAT:
            continue
        channels = weight.dims[0]
        shape = (channels, 1, KERNEL, KERNEL)
        if math.prod(shape) + count >= MAX_COUNT:
            continue
        site = Site(
            node.output[0], weight.name, bias.name,
            np.arange(math.prod(shape), dtype=np.float32).reshape(shape),
            np.arange(count, count + channels, dtype=np.float32),
        )  # fmt: skip
        names = [f"{DOMAIN}.tracer.{len(sites)}.{part}" for part in ("weight", "bias")]
        values = (site.traced_weight, site.traced_bias)
        model.graph.initializer.extend(map(numpy_helper.from_array, values, names))
        tracer = helper.make_node(
            "Conv", [node.input[0], *names], list(node.output), node.name, group=channels,
            kernel_shape=[KERNEL, KERNEL], pads=[KERNEL // 2] * 4,
        )  # fmt: skip
        node.CopyFrom(tracer)
        sites.append(site)
        count += channels
    return sites


def _replace_tracers(model: onnx.ModelProto, sites: list[Site]) -> set[str]:
    """Replace every tracer by Sparta. Return the outputs of sites whose tracer was changed or not found."""
    values = {i.name: i for i in model.graph.initializer}
    pending = {float(site.traced_bias[0]): site for site in sites}
    for node in model.graph.node:
        if len(node.input) < 3 or node.input[2] not in values:
            continue
        bias = numpy_helper.to_array(values[node.input[2]])
        site = pending.get(float(bias.flat[0])) if bias.size else None
        if site is None or not np.array_equal(bias, site.traced_bias):
            continue  # a convolution of the network itself
        if node.input[1] not in values or not _is_unchanged(node, site):
            continue
        block = _block_of(values[node.input[1]], site)
        if block is None or node.domain != (NCHWC if block > 1 else ""):
            continue  # a convolution in another layout
        operator = BLOCKED if block > 1 else OPERATOR
        attributes: dict[str, Any] = {"block": block} if block > 1 else {"channels": len(bias)}
        sparta = helper.make_node(
            operator, [node.input[0], site.weight, site.bias], list(node.output), node.name, domain=DOMAIN,
            **attributes,
        )  # fmt: skip
        node.CopyFrom(sparta)
        del pending[float(site.traced_bias[0])]
    still_read = {node.input[2] for node in model.graph.node if len(node.input) > 2} & values.keys()
    for name in still_read:  # a copy of a tracer, or a tracer fused into another node
        bias = numpy_helper.to_array(values[name])
        for site in sites:
            if np.array_equal(bias, site.traced_bias):
                pending[float(site.traced_bias[0])] = site
    return {site.output for site in pending.values()}


def _block_of(weight: onnx.TensorProto, site: Site) -> int | None:
    """Return the block size in whose order the weights are: 1 if not reordered, None if in another order."""
    values, expected = numpy_helper.to_array(weight).ravel(), site.traced_weight
    if np.array_equal(values, expected.ravel()):
        return 1
    channels = len(expected)
    for block in BLOCKS:
        if channels % block == 0:
            reordered = expected.reshape(channels // block, block, -1).transpose(0, 2, 1)
            if np.array_equal(values, reordered.ravel()):
                return block
    return None


def _is_unchanged(node: onnx.NodeProto, site: Site) -> bool:
    """Return whether a node is the inserted convolution with nothing fused into it."""
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
