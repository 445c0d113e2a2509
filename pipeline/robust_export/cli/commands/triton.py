"""robust-export triton: write a model repository for NVIDIA Triton."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from robust_export.cli.console import Console
from robust_export.cli.options import (
    COUNT,
    NATURAL,
    PATH,
    POSITIVE,
    json_option,
    model_option,
    parse_compute_capability,
    parse_integers,
    precision_option,
)
from robust_export.errors import InvalidValue


@click.command()
@model_option
@click.option("--out", type=PATH, show_default="triton/ in the bundle", help="Folder of the repository.")
@click.option(
    "--runtime", type=click.Choice(["tensorrt", "onnx"]), default="tensorrt", show_default=True,
    help="Serve a TensorRT engine, or the ONNX file.",
)  # fmt: skip
@precision_option("Which of the bundle's files to serve.")
@click.option(
    "--engine", metavar="FILE", help="File name of the engine, if the bundle has several of the precision."
)
@click.option(
    "--compute-capability", metavar="M.N", help="Choose the engine for this compute capability, such as 8.9."
)
@click.option(
    "--max-batch", type=NATURAL, default=0, metavar="N", show_default="the engine's largest; 32 for ONNX",
    help="Largest batch, in images, that requests are combined into.",
)  # fmt: skip
@click.option(
    "--preferred", default="", metavar="N,N",
    show_default="the engine's optimum and the largest; a quarter and the largest for ONNX",
    help="Preferred batch sizes.",
)  # fmt: skip
@click.option(
    "--max-delay", type=click.FloatRange(0, 1000), default=2, show_default=True, metavar="MS",
    help="Milliseconds that a request waits for others to join its batch.",
)  # fmt: skip
@click.option(
    "--queue", type=NATURAL, default=128, show_default=True, metavar="N",
    help="Waiting requests; further ones are refused. 0: no limit.",
)  # fmt: skip
@click.option(
    "--timeout", type=POSITIVE, default=30, show_default=True, metavar="S",
    help="Seconds that a request may wait before it is refused.",
)  # fmt: skip
@click.option(
    "--instances", type=COUNT, default=1, show_default=True, metavar="N",
    help="Instances of the model per device.",
)  # fmt: skip
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True,
    help="Device that runs the model; auto: the GPU for engines, the CPU for ONNX files.",
)  # fmt: skip
@click.option("--gpus", default="", metavar="N,N", show_default="all", help="Indices of the GPUs to use.")
@click.option(
    "--models", default="/models", show_default=True, metavar="PATH",
    help="Path of the model repository on the server.",
)  # fmt: skip
@click.option(
    "--plugin", default="/plugins/libsparta_trt.so", show_default=True, metavar="PATH",
    help="Path of the TensorRT plugin on the server.",
)  # fmt: skip
@click.option(
    "--op-library", default="", metavar="PATH", show_default="none: the function body is used",
    help="Path of libsparta_ort.so on the server, for ONNX files.",
)  # fmt: skip
@json_option
def triton(
    model: str, out: Path | None, runtime: str, precision: str, engine: str | None,
    compute_capability: str | None, preferred: str, gpus: str, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Write a model repository for NVIDIA Triton.

    The repository contains a TensorRT engine or the ONNX file, config.pbtxt, the labels, and a README. Prints
    the command that starts the server.
    """
    from robust_export.bundle import Bundle
    from robust_export.recipe.recipe_file import dataclass_from_table
    from robust_export.serving.triton.artifact_choice import choose_artifact
    from robust_export.serving.triton.repository import write_repository
    from robust_export.serving.triton.settings import TritonSettings

    console = Console(as_json)
    lists = {"preferred": _parse_list("--preferred", preferred), "gpus": _parse_list("--gpus", gpus)}
    settings = dataclass_from_table(TritonSettings, options | lists, "triton options")
    if runtime == "onnx" and (engine or compute_capability):
        raise InvalidValue("--engine and --compute-capability choose an engine: leave out --runtime onnx")
    capability = None
    if compute_capability:
        capability = ".".join(map(str, parse_compute_capability(compute_capability)))
    bundle = Bundle.open(model)
    chosen = choose_artifact(bundle, runtime, precision=precision, engine=engine, capability=capability)  # type: ignore[arg-type]
    written = write_repository(bundle, chosen, settings, out)
    largest = written.config["max_batch_size"]
    console.print_status(f"wrote {written.folder}: {chosen.file}, batches of up to {largest} images")
    verdict = written.parameters["robust_export.verdict"]
    if verdict != "pass":
        result = "has not been verified" if verdict == "none" else f"was verified: {verdict}"
        advice = f"robust-export verify --model {bundle.path} --artifact {bundle.path / chosen.file}"
        console.print_status(f"{chosen.file} {result}; {advice}")
    if as_json:
        facts = {key.removeprefix("robust_export."): text for key, text in written.parameters.items()}
        console.print_result({"folder": str(written.folder), "command": written.command, "facts": facts})
    else:
        click.echo(shlex.join(written.command))


def _parse_list(option: str, text: str) -> tuple[int, ...]:
    """Parse "8,32" into (8, 32), and an empty text into ()."""
    return tuple(parse_integers(option, text)) if text.strip() else ()
