"""From an ONNX file to engines: one for each compute capability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robust_export.errors import ArtifactError, InvalidValue
from robust_export.export.tensorrt import aot as quick
from robust_export.export.tensorrt.builder import Network, Options, Refusal, check_options
from robust_export.export.tensorrt.graph import Graph, read
from robust_export.export.tensorrt.inspect import (
    Layer,
    check_engine,
    check_network,
    inspect_engine,
    network_layers,
)
from robust_export.export.tensorrt.monitor import Monitor
from robust_export.kernels.libraries import trt_library, why_no_trt_library
from robust_export.runtimes.tensorrt.gpu_info import gpu
from robust_export.runtimes.tensorrt.plugins import load_plugins
from robust_export.runtimes.tensorrt.variants import Variant, find
from robust_export.utils.files import sha256

Capability = tuple[int, int]
Refused = Callable[[Capability, ArtifactError], None]


@dataclass(frozen=True)
class Engine:
    """An engine as it goes to a file.

    Attributes:
        plan: what TensorRT's runtime deserialises.
        inspected: whether a GPU told the precision and the plugin layers of the engine itself.
    """

    capability: Capability
    plan: bytes
    inspected: bool


@dataclass(frozen=True)
class Parsed:
    """A network that was proved to be what was asked for, ready to be built.

    Attributes:
        plugin_file: the plugin's library, None where none is needed.
    """

    network: Network
    precision: str
    layers: list[Layer]
    plugin_layers: int
    plugin_file: Path | None = None
    flavor: Variant = field(init=False)
    graph: Graph = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "flavor", self.network.flavor)
        object.__setattr__(self, "graph", self.network.graph)

    def facts(self) -> dict[str, Any]:
        """Return what a manifest says of all its engines."""
        digest = sha256(self.plugin_file) if self.plugin_file else None
        return {
            "precision": self.precision, "flavor": self.flavor.name, "tensorrt": self.flavor.version,
            "plugin": self.graph.plugin, "plugin_library": digest,
            "sparta_nodes": len(self.graph.sparta), "plugin_layers": self.plugin_layers,
        }  # fmt: skip


def parse(graph: Graph, precision: str, flavor: Variant) -> Parsed:
    """Return the network of a graph, proved; the plugins that the graph needs are registered.

    Raises:
        ArtifactError: if TensorRT refuses it, it is not what was asked for, or there are no such plugins.
    """
    library = None
    if graph.plugin == "library" and graph.sparta:
        library = trt_library()
        if library is None:
            raise ArtifactError(
                f"{why_no_trt_library()}\nWithout it: --plugin none builds the function's body."
            )
        load_plugins(flavor, library)
    elif graph.plugin == "aot" and graph.sparta:
        quick.register(flavor)
    network = Network(flavor, graph)
    layers = network_layers(network.network)
    found = check_network(layers, graph, precision, flavor)
    return Parsed(network, precision, layers, found, library)


def describe(parsed: Parsed, engine: Engine, options: Options) -> dict[str, Any]:
    """Return what a manifest says of an engine, and what it takes to run it."""
    return parsed.facts() | {
        "compute_capability": dotted(engine.capability), "profile": asdict(options.batch),
        "options": options.facts(), "inspected": engine.inspected,
    }  # fmt: skip


def targets(flavor: Variant, asked: Sequence[Capability] = ()) -> dict[Capability, Any | None]:
    """Return the compute capabilities to build for, and what chooses each.

    TensorRT builds for the GPU that is there. TensorRT for RTX builds for those that are asked for; otherwise
    for the GPU that is there, or, where there is none, for all that it knows.

    Raises:
        InvalidValue: for one that the flavor cannot choose.
        ArtifactError: if TensorRT has no GPU.
    """
    known = flavor.capabilities
    if not known:
        here = gpu()
        if here is None:
            raise ArtifactError(
                f"{flavor.title} needs the GPU that an engine is for, and this machine has none that CUDA "
                "sees; TensorRT for RTX builds without one: --flavor rtx"
            )
        other = [capability for capability in asked if capability != here]
        if other:
            raise InvalidValue(
                f"compute capability is {dotted(other[0])}; {flavor.title} builds for the GPU that is there, "
                f"which has {dotted(here)}: leave the option out, or run this on such a GPU"
            )
        return {here: None}
    for capability in asked:
        if capability not in known:
            raise InvalidValue(
                f"compute capability is {dotted(capability)}; {flavor.title} builds for "
                f"{', '.join(map(dotted, known))}"
            )
    if asked:
        return {capability: known[capability] for capability in asked}
    here = gpu()
    return {here: flavor.trt.ComputeCapability.CURRENT} if here else dict(known)


def build(
    parsed: Parsed, capabilities: Sequence[Capability] = (), options: Options | None = None,
    monitor: Monitor | None = None, refused: Refused | None = None,
) -> Iterator[Engine]:  # fmt: skip
    """Build the engines of a network.

    Args:
        refused: called for what TensorRT refuses to build where nobody asked for it by name.

    Raises:
        InvalidValue, ArtifactError: as `targets`; if TensorRT builds nothing, or not what was asked for.
        KeyboardInterrupt: if it was interrupted.
    """
    options = options or Options()
    check_options(parsed.flavor, options)
    chosen, here = targets(parsed.flavor, capabilities), _gpu_if_known()
    built, last = 0, None
    for capability, member in chosen.items():
        try:
            plan = parsed.network.build(options, member, monitor or Monitor())
        except Refusal as error:
            last = Refusal(f"compute capability {dotted(capability)}: {error}")
            if capabilities or refused is None:
                raise last from error
            refused(capability, error)
            continue
        layers = inspect_engine(parsed.flavor, plan) if capability == here else None
        if layers:
            check_engine(layers, parsed.graph, parsed.precision)
        built += 1
        yield Engine(capability, plan, bool(layers))
    if not built and last:
        raise last


def build_engine(
    path: Path, precision: str, *, flavor: str = "auto", plugin: str = "library",
    capability: Capability | None = None, options: Options | None = None, fuse_add: bool = False,
) -> Engine:  # fmt: skip
    """Return one engine of an ONNX file: for a compute capability, or the GPU that is there.

    Raises:
        InvalidValue, ArtifactError: as `parse` and `build`; if there is no GPU and no capability was given.
    """
    found = find(flavor)
    here = capability or gpu()
    if here is None:
        raise ArtifactError(
            "an engine is for one compute capability: none was given, and this machine has no GPU that CUDA "
            "sees; give one, such as (8, 9), or run this on a machine with a GPU"
        )
    parsed = parse(read(path, plugin, fuse_add=fuse_add), precision, found)
    return next(build(parsed, [capability] if capability else (), options))


def _gpu_if_known() -> Capability | None:
    try:
        return gpu()
    except ArtifactError:
        return None


def dotted(capability: Capability) -> str:
    """Return "8.9"."""
    return f"{capability[0]}.{capability[1]}"
