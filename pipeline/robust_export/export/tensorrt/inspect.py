"""Read the layers of networks and engines, and check precision and plugin layers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robust_export.errors import ArtifactError
from robust_export.export.tensorrt.graph import Graph
from robust_export.runtimes.tensorrt.engine import count_plugins, deserialise, engine_layers
from robust_export.runtimes.tensorrt.variants import Variant

PRODUCT_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
MOVING_LAYERS = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE")  # may follow a DequantizeLinear
INSPECTOR_TYPES = {"fp16": ("fp16", "half"), "bf16": ("bf16", "bfloat"), "int8": ("int8",)}


@dataclass(frozen=True)
class Layer:
    """A layer of a network, before TensorRT optimises it.

    Attributes:
        kind: the name of its trt.LayerType, such as "PLUGIN_V3".
        precision: of its arithmetic; "int8" for a product whose input comes from a DequantizeLinear.
        shape: of its first output; -1 for a free dimension, () for an unknown rank.
    """

    name: str
    kind: str
    precision: str
    shape: tuple[int, ...]


def network_layers(network: Any) -> list[Layer]:
    """Return the layers of a trt.INetworkDefinition in its order."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    producers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    return [_layer(layer, producers) for layer in layers]


def _layer(layer: Any, producers: dict[str, Any]) -> Layer:
    output = layer.get_output(0)
    kind = layer.type.name
    precision = PRECISIONS.get(output.dtype.name, output.dtype.name.lower())
    if kind in PRODUCT_LAYERS and _is_dequantised(layer.get_input(0), producers):
        precision = "int8"
    try:
        shape = tuple(output.shape)
    except ValueError:  # the rank is unknown
        shape = ()
    return Layer(layer.name, kind, precision, shape)


def _is_dequantised(tensor: Any, producers: dict[str, Any]) -> bool:
    """Return whether a tensor comes from a DequantizeLinear, directly or through MOVING_LAYERS."""
    while tensor is not None and tensor.name in producers:
        layer = producers[tensor.name]
        if layer.type.name not in MOVING_LAYERS:
            return bool(layer.type.name == "DEQUANTIZE")
        tensor = layer.get_input(0)
    return False


def check_network(layers: Sequence[Layer], graph: Graph, precision: str, variant: Variant) -> int:
    """Return the number of plugin layers of a network, after checking that and the precision.

    Raises:
        ArtifactError: if a Sparta node is not a plugin layer (with --plugin none: if one is), or a
            convolution or matrix product has another precision. Those of the function body are float32.
    """
    names, nodes = set(graph.sparta), len(graph.sparta)
    plugin_layers = sum(layer.kind == "PLUGIN_V3" and layer.name in names for layer in layers)
    expected = 0 if graph.plugin == "none" else nodes
    if plugin_layers != expected:
        raise ArtifactError(
            f"{variant.title} made {plugin_layers} plugin layers of the {nodes} Sparta nodes of "
            f"{graph.source}; expected {expected}: no engine is written. Build the plugin again with "
            "`robust-export plugins build`, or use --plugin none"
        )
    products = Counter(layer.precision for layer in layers if layer.kind in PRODUCT_LAYERS)
    expected_products = Counter({precision: graph.products})
    if graph.plugin == "none":
        expected_products["fp32"] += nodes
    if products != +expected_products:
        raise ArtifactError(
            f"the convolutions and matrix products of {graph.source} are {_format(products)} for "
            f"{variant.title}; expected {_format(+expected_products)}: no engine is written. Export the file "
            f"again with `robust-export onnx --precision {precision}`"
        )
    return plugin_layers


def _format(precisions: Counter[str]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in sorted(precisions.items())) or "none"


def inspect_engine(variant: Variant, plan: bytes) -> list[dict[str, Any]] | None:
    """Return the layers of an engine from TensorRT's inspector; this needs the GPU that it was built for.

    Raises:
        ArtifactError: if the engine cannot be deserialised.
    """
    return engine_layers(variant, deserialise(variant, plan, "the engine that it built"))


def check_engine(layers: Sequence[dict[str, Any]], graph: Graph, precision: str) -> None:
    """Raise ArtifactError if plugin layers are missing, or no layer has the requested precision.

    TensorRT fuses layers other than plugins, so these cannot be counted.
    """
    plugins = count_plugins(list(layers))
    expected = 0 if graph.plugin == "none" else len(graph.sparta)
    if plugins != expected:
        raise ArtifactError(
            f"the engine of {graph.source} has {plugins} plugin layers; expected {expected}: it is not "
            "written. Build the plugin again with `robust-export plugins build`, or use --plugin none"
        )
    names = INSPECTOR_TYPES.get(precision)
    types = json.dumps([[layer.get("Inputs"), layer.get("Outputs")] for layer in layers]).lower()
    if names and "datatype" in types and not any(name in types for name in names):
        raise ArtifactError(
            f"no layer of the engine of {graph.source} is in {precision}: it is not written. This TensorRT "
            "chose another precision than the network's; build with another version or another --precision"
        )
