"""Build engines from an ONNX file, one per compute capability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robust_export.errors import ArtifactError, InvalidValue
from robust_export.export.tensorrt import aot
from robust_export.export.tensorrt.builder import BuildRefused, Network, Options, check_options
from robust_export.export.tensorrt.graph import Graph, read_graph
from robust_export.export.tensorrt.inspect import (
    Layer,
    check_engine,
    check_network,
    inspect_engine,
    network_layers,
)
from robust_export.export.tensorrt.monitor import Monitor
from robust_export.kernels.libraries import trt_library, why_no_trt_library
from robust_export.runtimes.tensorrt.gpu_info import gpu_capability
from robust_export.runtimes.tensorrt.plugins import load_plugins
from robust_export.runtimes.tensorrt.variants import Variant, load_variant
from robust_export.utils.files import sha256

Capability = tuple[int, int]
OnRefused = Callable[[Capability, ArtifactError], None]


@dataclass(frozen=True)
class Engine:
    """A serialised engine.

    Attributes:
        plan: the bytes that TensorRT's runtime deserialises.
        inspected: whether its precision and plugin layers were checked on a GPU.
    """

    capability: Capability
    plan: bytes
    inspected: bool


@dataclass(frozen=True)
class ParsedNetwork:
    """A network whose precision and plugin layers were checked, ready to be built.

    Attributes:
        plugin_file: the plugin library, None if it needs none.
    """

    network: Network
    precision: str
    layers: tuple[Layer, ...]
    plugin_layers: int
    plugin_file: Path | None = None

    @property
    def variant(self) -> Variant:
        return self.network.variant

    @property
    def graph(self) -> Graph:
        return self.network.graph

    def facts(self) -> dict[str, Any]:
        """Return the manifest's entries that all engines of this network share."""
        digest = sha256(self.plugin_file) if self.plugin_file else None
        return {
            "precision": self.precision, "flavor": self.variant.name, "tensorrt": self.variant.version,
            "plugin": self.graph.plugin, "plugin_library": digest,
            "sparta_nodes": len(self.graph.sparta), "plugin_layers": self.plugin_layers,
        }  # fmt: skip


def parse_network(graph: Graph, precision: str, variant: Variant) -> ParsedNetwork:
    """Register the plugins that a graph needs, parse it, and check the network.

    Raises:
        ArtifactError: if TensorRT refuses the graph, the network is not as requested, or a plugin is missing.
    """
    library = None
    if graph.plugin == "library" and graph.sparta:
        library = trt_library()
        if library is None:
            raise ArtifactError(
                f"{why_no_trt_library()}\nTo build without it, use --plugin none: Sparta's function body."
            )
        load_plugins(variant, library)
    elif graph.plugin == "aot" and graph.sparta:
        aot.register(variant)
    network = Network(variant, graph)
    layers = network_layers(network.network)
    plugin_layers = check_network(layers, graph, precision, variant)
    return ParsedNetwork(network, precision, tuple(layers), plugin_layers, library)


def engine_facts(parsed: ParsedNetwork, engine: Engine, options: Options) -> dict[str, Any]:
    """Return an engine's entry of the manifest."""
    return parsed.facts() | {
        "compute_capability": format_capability(engine.capability), "profile": asdict(options.batch),
        "options": options.facts(), "inspected": engine.inspected,
    }  # fmt: skip


def target_capabilities(
    variant: Variant, requested: Sequence[Capability] = ()
) -> dict[Capability, Any | None]:
    """Return the compute capabilities to build for, with the trt.ComputeCapability that selects each.

    TensorRT builds for this machine's GPU only (None selects it). TensorRT for RTX builds for the requested
    capabilities; by default for this machine's GPU, or for all that it supports if there is none.

    Raises:
        InvalidValue: for a capability that the variant cannot build for.
        ArtifactError: if the variant is TensorRT and there is no GPU.
    """
    supported = variant.capabilities
    if not supported:
        return _this_gpu_only(variant, requested)
    for capability in requested:
        if capability not in supported:
            raise InvalidValue(
                f"compute capability is {format_capability(capability)}; {variant.title} builds for "
                f"{', '.join(map(format_capability, supported))}"
            )
    if requested:
        return {capability: supported[capability] for capability in requested}
    present = gpu_capability()
    return {present: variant.trt.ComputeCapability.CURRENT} if present else dict(supported)


def _this_gpu_only(variant: Variant, requested: Sequence[Capability]) -> dict[Capability, Any | None]:
    present = gpu_capability()
    if present is None:
        raise ArtifactError(
            f"{variant.title} needs the GPU that the engine is for, and CUDA finds no GPU on this machine; "
            "TensorRT for RTX builds without one: --flavor rtx"
        )
    others = [capability for capability in requested if capability != present]
    if others:
        raise InvalidValue(
            f"compute capability is {format_capability(others[0])}; {variant.title} builds for this "
            f"machine's GPU, which has {format_capability(present)}: omit the option, or run this on such a "
            "GPU"
        )
    return {present: None}


def build_engines(
    parsed: ParsedNetwork, capabilities: Sequence[Capability] = (), options: Options | None = None,
    monitor: Monitor | None = None, on_refused: OnRefused | None = None,
) -> Iterator[Engine]:  # fmt: skip
    """Build the engines of a network, one after the other.

    Args:
        capabilities: to build for; none means the defaults of `target_capabilities`.
        on_refused: called when TensorRT refuses one of these defaults; the build then continues.

    Raises:
        InvalidValue: as in `target_capabilities`.
        ArtifactError: as in `target_capabilities`; also if TensorRT builds nothing, or not as requested.
        KeyboardInterrupt: on Ctrl-C.
    """
    options = options or Options()
    check_options(parsed.variant, options)
    targets, present = target_capabilities(parsed.variant, capabilities), _gpu_capability_or_none()
    built, refusal = 0, None
    for capability, member in targets.items():
        try:
            plan = parsed.network.build(options, member, monitor or Monitor())
        except BuildRefused as error:
            refusal = BuildRefused(f"compute capability {format_capability(capability)}: {error}")
            if capabilities or on_refused is None:
                raise refusal from error
            on_refused(capability, error)
            continue
        layers = inspect_engine(parsed.variant, plan) if capability == present else None
        if layers:
            check_engine(layers, parsed.graph, parsed.precision)
        built += 1
        yield Engine(capability, plan, bool(layers))
    if refusal and not built:
        raise refusal


def build_engine(
    path: Path, precision: str, *, variant: str = "auto", plugin: str = "library",
    capability: Capability | None = None, options: Options | None = None, fuse_add: bool = False,
) -> Engine:  # fmt: skip
    """Build one engine of an ONNX file, for a compute capability or this machine's GPU.

    Raises:
        InvalidValue: as in `build_engines`.
        ArtifactError: as in `parse_network` and `build_engines`; also without both capability and GPU.
    """
    loaded = load_variant(variant)
    if capability is None and gpu_capability() is None:
        raise ArtifactError(
            "an engine is for one compute capability, but none was given, and CUDA finds no GPU on this "
            "machine; give one, such as (8, 9), or run this on a machine with a GPU"
        )
    parsed = parse_network(read_graph(path, plugin, fuse_add=fuse_add), precision, loaded)
    return next(build_engines(parsed, [capability] if capability else (), options))


def _gpu_capability_or_none() -> Capability | None:
    try:
        return gpu_capability()
    except ArtifactError:  # cuda-bindings is not installed
        return None


def format_capability(capability: Capability) -> str:
    """Return a compute capability as text, such as "8.9"."""
    return f"{capability[0]}.{capability[1]}"
