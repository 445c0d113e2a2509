"""The graph that TensorRT's parser is given, made in memory from a bundle's ONNX file.

Which of plugin and function the parser takes for a node that has both depends on its version. So it is never
asked: with the plugin the function is left out, without it the function's body is written in its place.
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
from robust_export.nn.operator import DOMAIN, OPERATOR
from robust_export.runtimes.onnx_model import drop_function, has_function, read_model, sparta_nodes

PLUGINS = ("library", "aot", "none")
VERSION = "1"  # of the plugins, as the parser looks for them, and their namespaces
NAMESPACES = {"library": "", "aot": "sparta"}
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Graph:
    """What the parser is given, and what the file had.

    Attributes:
        sparta: the names of the file's Sparta nodes, which their plugin layers get.
        products: how many convolutions and products of matrices the file has, but for those of the function.
    """

    model: onnx.ModelProto
    source: Path
    plugin: str
    sparta: tuple[str, ...]
    products: int

    def content(self) -> bytes:
        return bytes(self.model.SerializeToString(deterministic=True))


def read(path: Path, plugin: str = "library", *, fuse_add: bool = False) -> Graph:
    """Return the graph of an ONNX file for TensorRT.

    Args:
        plugin: what runs Sparta: "library" (libsparta_trt.so), "aot" (kernels in the engine, see `quick`), or
            "none": the function's body.
        fuse_add: let the plugin add where Sparta alone reads an addition.

    Raises:
        UnknownName: for another plugin.
        ArtifactError: if it is no ONNX file, or lacks the function that is to be written in.
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
                f"{path} has {len(nodes)} Sparta nodes and no function body of theirs; expected one that "
                "`robust-export onnx` wrote, or --plugin library"
            )
        names = tuple(node.name for node in nodes)
        return Graph(onnx.inliner.inline_local_functions(model), path, plugin, names, products)
    if fuse_add:
        fuse_additions(model)
    names = _name_plugins(model, plugin)
    return Graph(model, path, plugin, names, products)


def _name_plugins(model: onnx.ModelProto, plugin: str) -> tuple[str, ...]:
    """Say on each Sparta node which plugin it is, leave out the function, and return the nodes' names."""
    drop_function(model)
    names = []
    for node in model.graph.node:
        if node.domain == DOMAIN:
            node.name = node.name or node.output[0]
            given: dict[str, str | int] = {"plugin_version": VERSION, "plugin_namespace": NAMESPACES[plugin]}
            if plugin == "aot":
                given["aot"] = 1
            node.attribute.extend(helper.make_attribute(key, value) for key, value in given.items())
            names.append(node.name)
    return tuple(names)


def fuse_additions(model: onnx.ModelProto) -> int:
    """Replace an Add of two planes of one shape, and the Sparta node that alone reads it, by SpartaAdd.

    The sum is then not rounded to half precision before Sparta reads it.
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
    """Return the shapes that are known in full, a free size by its name; those of constants are left out."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        sizes = tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        if all(sizes):
            found[value.name] = sizes
    return found


def fold_integer_biases(model: onnx.ModelProto) -> None:
    """Replace each DequantizeLinear of an int32 constant by the float32 that it gives: TensorRT has none."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "DequantizeLinear"]:
        wide, scale, *zero = (constants.get(name) for name in node.input)
        if wide is None or wide.data_type != TensorProto.INT32 or scale is None:
            continue
        values = numpy_helper.to_array(wide)
        if zero and zero[0] is not None:
            values = values - numpy_helper.to_array(zero[0])
        scales = numpy_helper.to_array(scale).astype(np.float32)
        folded = values.astype(np.float32) * scales  # [C] by [C] or a single number
        graph.initializer.append(numpy_helper.from_array(folded, node.output[0]))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
