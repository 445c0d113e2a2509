"""robust-export tensorrt: build TensorRT engines of a bundle's ONNX file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robust_export.cli.console import Console
from robust_export.cli.options import (
    PATH,
    POSITIVE,
    json_option,
    model_option,
    parse_compute_capability,
    parse_integers,
    precision_option,
    split_commas,
)
from robust_export.cli.process import interruptible
from robust_export.errors import ArtifactError, InvalidValue

if TYPE_CHECKING:
    from robust_export.export.tensorrt.engines import Capability, ParsedNetwork
    from robust_export.export.tensorrt.graph import Graph


@click.command()
@model_option
@precision_option("Which of the bundle's ONNX files to build.")
@click.option(
    "--compute-capability", "capabilities", multiple=True, metavar="M.N",
    show_default="this machine's GPU; without a GPU, all that TensorRT for RTX supports",
    help="Compute capability of the GPU to build for, such as 8.9; may be repeated.",
)  # fmt: skip
@click.option(
    "--flavor", "variant", type=click.Choice(["auto", "tensorrt", "rtx"]), default="auto", show_default=True,
    help="TensorRT variant: tensorrt (builds on the GPU that will run the engine) or rtx (TensorRT for RTX, "
    "builds without a GPU); auto: tensorrt if it is installed.",
)  # fmt: skip
@click.option(
    "--plugin", type=click.Choice(["library", "aot", "none"]), default="library", show_default=True,
    help="How Sparta runs: in the plugin library libsparta_trt.so, in kernels compiled into the engine "
    "(aot), or as TensorRT's own layers (none).",
)  # fmt: skip
@click.option(
    "--batch", default="1,32,256", show_default=True, metavar="MIN,OPT,MAX",
    help="Smallest, optimal and largest batch, in images.",
)  # fmt: skip
@click.option(
    "--fuse-add", is_flag=True, help="Fuse additions whose result only Sparta reads into the plugin."
)
@click.option("--tf32", is_flag=True, help="Allow TF32: fp32 products with 10-bit mantissas.")
@click.option(
    "--workspace", type=POSITIVE, metavar="GIB", show_default="TensorRT's limit",
    help="GPU memory that a layer may use, in GiB.",
)  # fmt: skip
@click.option(
    "--version-compatible", is_flag=True, help="Let later TensorRT versions run the engine; not with rtx."
)
@click.option(
    "--hardware-compatible", type=click.Choice(["ampere_plus", "same_compute_capability"]),
    help="Let other GPUs run the engine; not with rtx.",
)  # fmt: skip
@click.option(
    "--timing-cache",
    type=PATH,
    metavar="FILE",
    help="File with kernel timings to read and update; not with rtx.",
)
@click.option("--save-onnx", type=PATH, metavar="FILE", help="Write the ONNX graph that TensorRT parses.")
@click.option("--explain", is_flag=True, help="Print the layers of the network, and build nothing.")
@json_option
def tensorrt(
    model: str, precision: str, capabilities: tuple[str, ...], variant: str, plugin: str, batch: str,
    fuse_add: bool, tf32: bool, workspace: float | None, version_compatible: bool,
    hardware_compatible: str | None, timing_cache: Path | None, save_onnx: Path | None, explain: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Build TensorRT engines of a bundle's ONNX file.

    Writes one engine per compute capability into the bundle.
    """
    from robust_export.bundle import Bundle
    from robust_export.export.tensorrt.builder import Batch, Options
    from robust_export.export.tensorrt.bundle_engines import export_engines, find_onnx_file
    from robust_export.export.tensorrt.engines import format_capability, parse_network
    from robust_export.export.tensorrt.graph import read_graph
    from robust_export.export.tensorrt.monitor import Monitor
    from robust_export.runtimes.tensorrt.variants import load_variant
    from robust_export.utils.files import write_atomically

    console = Console(as_json)
    wanted = [parse_compute_capability(word) for text in capabilities for word in split_commas(text)]
    if fuse_add and plugin == "none":
        raise InvalidValue(
            "--fuse-add was given with --plugin none, which cannot fuse: leave one of them out"
        )
    options = Options(
        Batch(*_parse_batch(batch)), tf32, workspace, version_compatible, hardware_compatible, timing_cache
    )
    bundle = Bundle.open(model)
    refused: list[dict[str, str]] = []

    def save(graph: Graph) -> None:
        if save_onnx:
            write_atomically(save_onnx, graph.content())
            console.print_status(f"wrote {save_onnx}")

    def record_refusal(capability: Capability, error: ArtifactError) -> None:
        refused.append({"compute_capability": format_capability(capability), "why": str(error)})
        console.print_status(f"no engine for compute capability {format_capability(capability)}: {error}")

    if explain:
        graph = read_graph(find_onnx_file(bundle, precision), plugin, fuse_add=fuse_add)
        save(graph)
        _print_layers(console, parse_network(graph, precision, load_variant(variant)))
        return
    console.print_status(f"building engines of {bundle.name} in {precision}")
    monitor = Monitor(console.print_progress if console.interactive else None)
    with interruptible("the build was interrupted; the engines written so far are complete"):
        paths = export_engines(
            bundle, precision=precision, variant=variant, plugin=plugin, capabilities=wanted, options=options,
            fuse_add=fuse_add, monitor=monitor, on_refused=record_refusal, on_graph=save,
        )  # fmt: skip
    engines = [{"file": str(path), **bundle.manifest["files"][path.name]} for path in paths]
    _print_engines(console, engines, refused)


def _print_engines(console: Console, engines: list[dict[str, Any]], refused: list[dict[str, str]]) -> None:
    if console.as_json:
        console.print_result({"engines": engines, "refused": refused})
    for engine in engines:
        console.print_status(
            f"wrote {engine['file']}: {engine['plugin_layers']} plugin layers for {engine['sparta_nodes']} "
            "Sparta nodes" + ("" if engine["inspected"] else "; not run on a GPU here")
        )


def _print_layers(console: Console, parsed: ParsedNetwork) -> None:
    """Print the layers of a parsed network."""
    from rich.table import Table

    table = Table("layer", "kind", "precision", "shape")
    for layer in parsed.layers:
        table.add_row(layer.name, layer.kind, layer.precision, " x ".join(map(str, layer.shape)))
    console.print_result(parsed.facts() | {"layers": [asdict(layer) for layer in parsed.layers]}, table)
    console.print_status(
        f"{parsed.variant.title}: {parsed.plugin_layers} plugin layers for {len(parsed.graph.sparta)} Sparta "
        "nodes; nothing was built"
    )


def _parse_batch(text: str) -> list[int]:
    """Parse "1,32,256" into its three numbers; a single number stands for all three."""
    numbers = parse_integers("--batch", text)
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise InvalidValue(
            f"--batch is {text!r}; expected the smallest, optimal and largest batch, such as 1,32,256"
        )
    return numbers
