"""Writes engines into a bundle and lists them in its manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from robust_export.bundle import FILES, Bundle
from robust_export.errors import ArtifactError, unknown
from robust_export.export.tensorrt.builder import Options
from robust_export.export.tensorrt.engines import Capability, Engine, Parsed, Refused, build, describe, parse
from robust_export.export.tensorrt.graph import Graph, read
from robust_export.export.tensorrt.monitor import Monitor
from robust_export.runtimes.tensorrt.variants import find

KINDS = {"library": (), "aot": ("aot",), "none": ("body",)}  # what a file's name says of the plugin


def source(bundle: Bundle, precision: str) -> Path:
    """Return the ONNX file that the engines of a precision are built from.

    Raises:
        UnknownName: for another precision.
        ArtifactError: if the bundle has no such file.
    """
    if precision not in FILES:
        raise unknown("precision", precision, FILES)
    name = FILES[precision]
    if name not in bundle.manifest["files"]:
        raise ArtifactError(
            f"bundle {bundle.path} has no {name}, which engines in {precision} are built from; write it with "
            f"`robust-export onnx --model {bundle.path} --precision {precision}`"
        )
    return bundle.file(name)


def export_engine(
    bundle: Bundle, *, precision: str = "fp32", flavor: str = "auto", plugin: str = "library",
    capabilities: Sequence[Capability] = (), options: Options | None = None, fuse_add: bool = False,
    monitor: Monitor | None = None, refused: Refused | None = None,
    on_graph: Callable[[Graph], None] | None = None,
) -> list[Path]:  # fmt: skip
    """Build engines of a bundle's ONNX file, and write each one as soon as it is built.

    Args:
        capabilities: to build for; see `targets` for what none means.
        refused: called for a compute capability that nobody asked for by name and TensorRT refuses.
        on_graph: called with what TensorRT is given, before TensorRT is looked for.

    Raises:
        UnknownName, InvalidValue: for an option that is none.
        ArtifactError: if TensorRT is missing, refuses the file, or makes something else of it.
        KeyboardInterrupt: if it was interrupted; what was written is whole.
    """
    file, options = source(bundle, precision), options or Options()
    graph = read(file, plugin, fuse_add=fuse_add)
    if on_graph:
        on_graph(graph)
    parsed = parse(graph, precision, find(flavor))
    digest = bundle.manifest["files"][file.name]["sha256"]
    paths = []
    for engine in build(parsed, capabilities, options, monitor, refused):
        facts = describe(parsed, engine, options)
        facts["options"]["fuse_add"] = fuse_add
        facts["source"] = {"file": file.name, "sha256": digest}
        paths += bundle.write({file_name(parsed, engine): engine.plan}, "engine", **facts)
    return paths


def file_name(parsed: Parsed, engine: Engine) -> str:
    """Return the name of an engine's file: "model.fp16.sm89.rtx.engine"."""
    stem = FILES[parsed.precision].removesuffix(".onnx")
    major, minor = engine.capability
    parts = [stem, *KINDS[parsed.graph.plugin], f"sm{major}{minor}"]
    return ".".join([*parts, *["rtx"] * (parsed.flavor.name == "rtx"), "engine"])
