"""What a network or an engine is made of, and the proof that it is what was asked for."""

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

PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
MOVES = (
    "SHUFFLE",
    "IDENTITY",
    "SQUEEZE",
    "UNSQUEEZE",
)  # what may stand between a DequantizeLinear and a product
FORMATS = {
    "fp16": ("fp16", "half"),
    "bf16": ("bf16", "bfloat"),
    "int8": ("int8",),
}  # as inspectors write them


@dataclass(frozen=True)
class Layer:
    """A layer of a network, before TensorRT optimises it.

    Attributes:
        kind: as trt.LayerType calls it, such as "PLUGIN_V3".
        precision: of its arithmetic; "int8" where a product's input comes from a DequantizeLinear.
    """

    name: str
    kind: str
    precision: str
    shape: tuple[int, ...]


def network_layers(network: Any) -> list[Layer]:
    """Return the layers of a network in its order."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    made = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    return [_layer(layer, made) for layer in layers]


def _layer(layer: Any, made: dict[str, Any]) -> Layer:
    output = layer.get_output(0)
    kind = layer.type.name
    precision = PRECISIONS.get(output.dtype.name, output.dtype.name.lower())
    if kind in PRODUCTS and _is_quantised(layer.get_input(0), made):
        precision = "int8"
    try:
        shape = tuple(output.shape)
    except ValueError:  # a rank that is not known
        shape = ()
    return Layer(layer.name, kind, precision, shape)


def _is_quantised(tensor: Any, made: dict[str, Any]) -> bool:
    """Return whether a tensor is what a DequantizeLinear gives, moved about at most."""
    while tensor is not None and tensor.name in made:
        layer = made[tensor.name]
        if layer.type.name not in MOVES:
            return bool(layer.type.name == "DEQUANTIZE")
        tensor = layer.get_input(0)
    return False


def plugin_layers(layers: Sequence[Layer], graph: Graph) -> int:
    """Return how many of the file's Sparta nodes are layers of the plugin."""
    names = set(graph.sparta)
    return sum(layer.kind == "PLUGIN_V3" and layer.name in names for layer in layers)


def check_network(layers: Sequence[Layer], graph: Graph, precision: str, flavor: Variant) -> int:
    """Return the number of plugin layers of a network that is what was asked for.

    Raises:
        ArtifactError: if they are not as many as the Sparta nodes (none without the plugin), or a convolution
            or product of matrices is of another precision; those of the function's body are float32.
    """
    found, nodes = plugin_layers(layers, graph), len(graph.sparta)
    expected = 0 if graph.plugin == "none" else nodes
    if found != expected:
        raise ArtifactError(
            f"{flavor.title} made {found} plugin layers of the {nodes} Sparta nodes of {graph.source}; "
            f"expected {expected}: no engine is written. Build the plugin again with `robust-export plugins "
            "build`, or use --plugin none"
        )
    products = Counter(layer.precision for layer in layers if layer.kind in PRODUCTS)
    wanted = Counter({precision: graph.products})
    if graph.plugin == "none":
        wanted["fp32"] += nodes
    if products != +wanted:
        raise ArtifactError(
            f"the convolutions and products of matrices of {graph.source} are {_counted(products)} for "
            f"{flavor.title}; expected {_counted(+wanted)}: no engine is written. Export the file again with "
            f"`robust-export onnx --precision {precision}`"
        )
    return found


def _counted(precisions: Counter[str]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in sorted(precisions.items())) or "none"


def inspect_engine(flavor: Variant, plan: bytes) -> list[dict[str, Any]] | None:
    """Return the layers of an engine as TensorRT's inspector tells them; it needs the GPU it was built for.

    Raises:
        ArtifactError: if the engine cannot be read back.
    """
    return engine_layers(flavor, deserialise(flavor, plan, "the engine that it built"))


def check_engine(found: Sequence[dict[str, Any]], graph: Graph, precision: str) -> None:
    """Raise ArtifactError if an engine has lost plugin layers, or multiplies in no layer as was asked.

    Fusion joins layers, so that only the plugin's can be counted.
    """
    plugins = count_plugins(list(found))
    expected = 0 if graph.plugin == "none" else len(graph.sparta)
    if plugins != expected:
        raise ArtifactError(
            f"the engine of {graph.source} has {plugins} plugin layers; expected {expected}: it is not "
            "written. Build the plugin again with `robust-export plugins build`, or use --plugin none"
        )
    words = FORMATS.get(precision)
    told = json.dumps([[layer.get("Inputs"), layer.get("Outputs")] for layer in found]).lower()
    if words and "datatype" in told and not any(word in told for word in words):
        raise ArtifactError(
            f"no layer of the engine of {graph.source} is in {precision}: it is not written. This TensorRT "
            "chose another precision than the network's; build with another version, or another --precision"
        )
