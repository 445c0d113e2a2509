"""The graph that TensorRT's parser reads, made in memory from a bundle's ONNX file.

For a node with both plugin and function body, the parser's choice depends on its version. So the graph has
only one of them: nodes without function body for the plugin, or the inlined function body.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from robust_export.errors import ArtifactError, unknown
from robust_export.nn.onnx_operator import DOMAIN, OPERATOR
from robust_export.runtimes.onnx_model import (
    MATRIX_PRODUCTS,
    drop_function,
    has_function,
    read_model,
    sparta_nodes,
)

PLUGINS = ("library", "aot", "none")
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACES = {"library": "", "aot": "sparta"}
PRODUCTS = (*MATRIX_PRODUCTS, "ConvTranspose")


@dataclass(frozen=True)
class Graph:
    """A graph for TensorRT's parser.

    Attributes:
        source: the ONNX file.
        plugin: one of PLUGINS.
        sparta: the names of the file's Sparta nodes, which are also those of the plugin layers.
        products: the number of convolutions and matrix products in the file, outside the function body.
    """

    model: onnx.ModelProto
    source: Path
    plugin: str
    sparta: tuple[str, ...]
    products: int

    def content(self) -> bytes:
        """Return the serialised model."""
        return bytes(self.model.SerializeToString(deterministic=True))


def read_graph(path: Path, plugin: str = "library", *, fuse_add: bool = False) -> Graph:
    """Return the graph of an ONNX file for TensorRT.

    Args:
        plugin: how Sparta runs: "library" (libsparta_trt.so), "aot" (kernels inside the engine, see `aot`) or
            "none" (the function body).
        fuse_add: replace an Add that only Sparta reads, and the Sparta node, by the plugin SpartaAdd.

    Raises:
        UnknownName: for another plugin.
        ArtifactError: if it is not an ONNX file, or lacks the function body with plugin "none".
    """
    if plugin not in PLUGINS:
        raise unknown("plugin", plugin, PLUGINS)
    model = read_model(path)
    nodes = sparta_nodes(model)
    products = sum(node.op_type in PRODUCTS for node in model.graph.node)
    fold_integer_biases(model)
    if plugin == "none":
        if nodes and not has_function(model):
            raise ArtifactError(
                f"{path} has {len(nodes)} Sparta nodes but no function body; expected a file that "
                "`robust-export onnx` wrote, or --plugin library"
            )
        names = tuple(node.name for node in nodes)
        return Graph(onnx.inliner.inline_local_functions(model), path, plugin, names, products)
    if fuse_add:
        fuse_additions(model)
    names = _set_plugin(model, plugin)
    return Graph(model, path, plugin, names, products)


def _set_plugin(model: onnx.ModelProto, plugin: str) -> tuple[str, ...]:
    """Set the plugin's attributes on each Sparta node, drop the function body, and return their names."""
    drop_function(model)
    names = []
    for node in model.graph.node:
        if node.domain == DOMAIN:
            node.name = node.name or node.output[0]
            attributes: dict[str, str | int] = {
                "plugin_version": PLUGIN_VERSION, "plugin_namespace": PLUGIN_NAMESPACES[plugin],
            }  # fmt: skip
            if plugin == "aot":
                attributes["aot"] = 1
            node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
            names.append(node.name)
    return tuple(names)


def fuse_additions(model: onnx.ModelProto) -> int:
    """Replace each Add of two feature maps of one shape, and the Sparta that alone reads it, by SpartaAdd.

    The sum is then not rounded to half precision before Sparta reads it. Return the number of replacements.
    """
    graph = model.graph
    shapes = _shapes(model)
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    sums = {node.output[0]: node for node in graph.node if node.op_type == "Add" and not node.domain}
    fused = 0
    for node in sparta_nodes(model):
        add = sums.get(node.input[0])
        if add is None or readers[node.input[0]] != 1:
            continue
        x, residual = (shapes.get(name) for name in add.input)
        if x is None or len(x) != 4 or x != residual:
            continue
        node.input[:] = [*add.input, *node.input[1:]]
        node.op_type = f"{OPERATOR}Add"
        graph.node.remove(add)
        fused += 1
    return fused


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Return the known shapes of values other than constants; a free dimension is its name."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        sizes = tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        if all(sizes):
            shapes[value.name] = sizes
    return shapes


def fold_integer_biases(model: onnx.ModelProto) -> None:
    """Replace each DequantizeLinear of an int32 constant by its float32 result, which TensorRT needs."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "DequantizeLinear"]:
        integers, scale, *zero = (constants.get(name) for name in node.input)
        if integers is None or integers.data_type != TensorProto.INT32 or scale is None:
            continue
        values = numpy_helper.to_array(integers)
        if zero and zero[0] is not None:
            values = values - numpy_helper.to_array(zero[0])
        scales = numpy_helper.to_array(scale).astype(np.float32)
        folded = values.astype(np.float32) * scales  # [C] times [C] or a scalar
        graph.initializer.append(numpy_helper.from_array(folded, node.output[0]))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
