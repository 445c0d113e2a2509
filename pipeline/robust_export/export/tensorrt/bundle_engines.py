"""Build engines into a bundle, and list them in its manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from robust_export.bundle import ONNX_FILES, Bundle
from robust_export.errors import ArtifactError, unknown
from robust_export.export.tensorrt.builder import Options
from robust_export.export.tensorrt.engines import (
    Capability,
    Engine,
    OnRefused,
    ParsedNetwork,
    build_engines,
    engine_facts,
    parse_network,
)
from robust_export.export.tensorrt.graph import Graph, read_graph
from robust_export.export.tensorrt.monitor import Monitor
from robust_export.runtimes.tensorrt.variants import load_variant

NAME_PARTS = {"library": (), "aot": ("aot",), "none": ("body",)}  # of a file's name, by plugin


def find_onnx_file(bundle: Bundle, precision: str) -> Path:
    """Return the ONNX file that the engines of a precision are built from.

    Raises:
        UnknownName: for another precision.
        ArtifactError: if the bundle has no such file.
    """
    if precision not in ONNX_FILES:
        raise unknown("precision", precision, ONNX_FILES)
    name = ONNX_FILES[precision]
    if name not in bundle.manifest["files"]:
        raise ArtifactError(
            f"bundle {bundle.path} has no {name}, which engines in {precision} are built from; write it with "
            f"`robust-export onnx --model {bundle.path} --precision {precision}`"
        )
    return bundle.file(name)


def export_engines(
    bundle: Bundle, *, precision: str = "fp32", variant: str = "auto", plugin: str = "library",
    capabilities: Sequence[Capability] = (), options: Options | None = None, fuse_add: bool = False,
    monitor: Monitor | None = None, on_refused: OnRefused | None = None,
    on_graph: Callable[[Graph], None] | None = None,
) -> list[Path]:  # fmt: skip
    """Build engines of a bundle's ONNX file, and write each one when it is built; return the paths.

    Args:
        capabilities: to build for; none means the defaults of `engines.target_capabilities`.
        on_refused: called when TensorRT refuses one of these defaults; the build then continues.
        on_graph: called with the graph before TensorRT is imported.

    Raises:
        UnknownName: for an unknown precision, plugin or variant.
        InvalidValue: for a compute capability that the variant cannot build for.
        ArtifactError: if TensorRT is missing, refuses the file, or the engine is not as requested.
        KeyboardInterrupt: on Ctrl-C; the engines written before are complete.
    """
    file, options = find_onnx_file(bundle, precision), options or Options()
    graph = read_graph(file, plugin, fuse_add=fuse_add)
    if on_graph:
        on_graph(graph)
    parsed = parse_network(graph, precision, load_variant(variant))
    digest = bundle.manifest["files"][file.name]["sha256"]
    paths = []
    for engine in build_engines(parsed, capabilities, options, monitor, on_refused):
        facts = engine_facts(parsed, engine, options)
        facts["options"]["fuse_add"] = fuse_add
        facts["source"] = {"file": file.name, "sha256": digest}
        paths += bundle.write({file_name(parsed, engine): engine.plan}, "engine", **facts)
    return paths


def file_name(parsed: ParsedNetwork, engine: Engine) -> str:
    """Return the name of an engine's file, such as "model.fp16.sm89.rtx.engine"."""
    stem = ONNX_FILES[parsed.precision].removesuffix(".onnx")
    major, minor = engine.capability
    parts = [stem, *NAME_PARTS[parsed.graph.plugin], f"sm{major}{minor}"]
    return ".".join([*parts, *["rtx"] * (parsed.variant.name == "rtx"), "engine"])
