"""The command that builds engines: tensorrt."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robust_export.cli.base import cli, interruptible
from robust_export.cli.console import CLEAR, Console
from robust_export.cli.options import counts, json_option, model_option, precision_option, words
from robust_export.errors import ArtifactError, InvalidValue

if TYPE_CHECKING:
    from robust_export.export.tensorrt.engines import Parsed

CAPABILITY = re.compile(r"(?:sm_?)?(\d+)\.?(\d)", re.IGNORECASE)


@cli.command()
@model_option
@precision_option("Which of the bundle's ONNX files.")
@click.option(
    "--compute-capability", "capabilities", multiple=True, metavar="M.N",
    help="Of the GPU, such as 8.9; may be repeated.  [this machine's; all of RTX's without a GPU]",
)  # fmt: skip
@click.option(
    "--flavor", type=click.Choice(["auto", "tensorrt", "rtx"]), default="auto", show_default=True,
    help="TensorRT, or TensorRT for RTX, which needs no GPU to build.",
)  # fmt: skip
@click.option(
    "--plugin", type=click.Choice(["library", "aot", "none"]), default="library", show_default=True,
    help="What runs Sparta: libsparta_trt.so, kernels in the engine, or the function body in the file.",
)  # fmt: skip
@click.option(
    "--batch", default="1,32,256", show_default=True, metavar="MIN,OPT,MAX", help="Images at a time."
)
@click.option("--fuse-add", is_flag=True, help="Let the plugin do the additions that it alone reads.")
@click.option("--tf32", is_flag=True, help="Let products of fp32 be rounded to 10 bits.")
@click.option("--workspace", type=float, metavar="GIB", help="GPU memory that a layer may use.")
@click.option("--version-compatible", is_flag=True, help="Let later TensorRTs run the engine.")
@click.option(
    "--hardware-compatible", type=click.Choice(["ampere_plus", "same_compute_capability"]),
    help="Let other GPUs run the engine.",
)  # fmt: skip
@click.option("--timing-cache", type=click.Path(path_type=Path), help="Measurements to read and write.")
@click.option("--save-onnx", type=click.Path(path_type=Path), help="Write the graph that TensorRT is given.")
@click.option("--explain", is_flag=True, help="Print the network's layers, and build nothing.")
@json_option
def tensorrt(
    model: str, precision: str, capabilities: tuple[str, ...], flavor: str, plugin: str, batch: str,
    fuse_add: bool, tf32: bool, workspace: float | None, version_compatible: bool,
    hardware_compatible: str | None, timing_cache: Path | None, save_onnx: Path | None, explain: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Build engines of a bundle's ONNX file, one for each compute capability."""
    from robust_export.bundle import Bundle
    from robust_export.export.tensorrt.builder import Batch, Options
    from robust_export.export.tensorrt.bundle_engines import export_engine, source
    from robust_export.export.tensorrt.engines import Capability, dotted, parse
    from robust_export.export.tensorrt.graph import Graph, read
    from robust_export.export.tensorrt.monitor import Monitor
    from robust_export.runtimes.tensorrt.variants import find
    from robust_export.utils.files import write_atomically

    console = Console(as_json)
    asked = [capability_of(word) for text in capabilities for word in words(text)]
    if fuse_add and plugin == "none":
        raise InvalidValue(
            "--fuse-add was given with --plugin none, which has no plugin to add: leave one out"
        )
    options = Options(
        Batch(*_batch(batch)), tf32, workspace, version_compatible, hardware_compatible, timing_cache
    )
    bundle = Bundle.open(model)
    refused: list[dict[str, str]] = []

    def save(graph: Graph) -> None:
        if save_onnx:
            write_atomically(save_onnx, graph.content())
            console.say(f"wrote {save_onnx}")

    def refuse(capability: Capability, error: ArtifactError) -> None:
        refused.append({"compute_capability": dotted(capability), "why": str(error)})
        console.say(f"no engine for compute capability {dotted(capability)}: {error}")

    if explain:
        graph = read(source(bundle, precision), plugin, fuse_add=fuse_add)
        save(graph)
        _explain(console, parse(graph, precision, find(flavor)))
        return
    console.say(f"building engines of {bundle.name} in {precision}")
    with interruptible("building was interrupted; the engines that were written are whole"):
        paths = export_engine(
            bundle, precision=precision, flavor=flavor, plugin=plugin, capabilities=asked, options=options,
            fuse_add=fuse_add, monitor=Monitor(_phases(console)), refused=refuse, on_graph=save,
        )  # fmt: skip
    engines = [{"file": str(path), **bundle.manifest["files"][path.name]} for path in paths]
    if as_json:
        console.show({"engines": engines, "refused": refused})
    for engine in engines:
        console.say(
            f"wrote {engine['file']}: {engine['plugin_layers']} plugin layers of {engine['sparta_nodes']} "
            "Sparta nodes" + ("" if engine["inspected"] else "; not run on a GPU here")
        )


def _explain(console: Console, parsed: Parsed) -> None:
    """Print the layers of a network."""
    from rich.table import Table

    table = Table("layer", "kind", "precision", "shape")
    for layer in parsed.layers:
        table.add_row(layer.name, layer.kind, layer.precision, " x ".join(map(str, layer.shape)))
    console.show(parsed.facts() | {"layers": [asdict(layer) for layer in parsed.layers]}, table)
    console.say(
        f"{parsed.flavor.title}: {parsed.plugin_layers} plugin layers of {len(parsed.graph.sparta)} Sparta "
        "nodes; nothing was built"
    )


def _phases(console: Console) -> Callable[[str], None] | None:
    """Return what prints each phase of a build: on a terminal only."""
    if not console.live:
        return None
    return lambda phase: click.echo(f"{CLEAR}{phase}", err=True, nl=False)


def capability_of(word: str) -> tuple[int, int]:
    """Return the two numbers of "8.9", "89" or "sm_89"."""
    found = CAPABILITY.fullmatch(word.strip())
    if not found:
        raise InvalidValue(f"--compute-capability is {word!r}; expected one such as 8.9")
    return int(found[1]), int(found[2])


def _batch(text: str) -> list[int]:
    """Return the three numbers of "1,32,256"; one number is all three."""
    numbers = counts("--batch", text)
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise InvalidValue(f"--batch is {text!r}; expected the least, best and largest, such as 1,32,256")
    return numbers
