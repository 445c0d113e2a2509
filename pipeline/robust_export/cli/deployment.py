"""The command that writes what other servers take: triton."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from robust_export.cli.base import cli
from robust_export.cli.console import Console
from robust_export.cli.options import counts, json_option, model_option, precision_option
from robust_export.cli.tensorrt import capability_of
from robust_export.errors import InvalidValue


@cli.command()
@model_option
@click.option("--out", type=click.Path(path_type=Path), help="The model repository.  [triton/ in the bundle]")
@click.option(
    "--runtime", type=click.Choice(["tensorrt", "onnx"]), default="tensorrt", show_default=True,
    help="Serve an engine, or the ONNX file.",
)  # fmt: skip
@precision_option("Which of the bundle's files.")
@click.option("--engine", metavar="FILE", help="Which of the bundle's engines, by name.")
@click.option("--compute-capability", metavar="M.N", help="Of the engine's GPU, such as 8.9.")
@click.option(
    "--max-batch", type=int, default=0, help="Images that run as one.  [the engine's largest, or 32]"
)
@click.option(
    "--preferred", default="", metavar="N,N", help="Sizes that batches had better have.  [best and largest]"
)
@click.option(
    "--max-delay", default="2", show_default=True, metavar="MS", help="What a request waits for others."
)
@click.option(
    "--queue", type=int, default=128, show_default=True, help="Requests that may wait; 0 for no end."
)
@click.option("--timeout", default="30", show_default=True, metavar="S", help="What a request may wait.")
@click.option("--instances", type=int, default=1, show_default=True, help="Of the model, on each device.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True,
    help="What runs it; auto takes the GPU for engines, the CPU for ONNX files.",
)  # fmt: skip
@click.option("--gpus", default="", metavar="N,N", help="Numbers of the GPUs.  [all]")
@click.option("--models", default="/models", show_default=True, help="Where the server sees the repository.")
@click.option(
    "--plugin", default="/plugins/libsparta_trt.so", show_default=True, metavar="PATH",
    help="Where it sees TensorRT's plugin.",
)  # fmt: skip
@click.option(
    "--op-library", default="", metavar="PATH", help="Where it sees ONNX Runtime's.  [the function body runs]"
)
@json_option
def triton(
    model: str, out: Path | None, runtime: str, precision: str, engine: str | None,
    compute_capability: str | None, preferred: str, gpus: str, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Write a model repository for Triton: config.pbtxt, the engine or ONNX file, labels, flags."""
    from robust_export.bundle import Bundle
    from robust_export.recipe.recipe_file import build
    from robust_export.serving.triton.artifact_choice import choose
    from robust_export.serving.triton.repository import write_repository
    from robust_export.serving.triton.settings import TritonSettings

    console = Console(as_json)
    lists = {"preferred": _numbers("preferred", preferred), "gpus": _numbers("gpus", gpus)}
    settings = build(TritonSettings, options | lists, "triton options")
    if runtime == "onnx" and (engine or compute_capability):
        raise InvalidValue("--engine and --compute-capability choose an engine: leave out --runtime onnx")
    wanted = None
    if compute_capability:
        wanted = ".".join(map(str, capability_of(compute_capability)))
    bundle = Bundle.open(model)
    chosen = choose(bundle, runtime, precision=precision, engine=engine, capability=wanted)  # type: ignore[arg-type]
    written = write_repository(bundle, chosen, settings, out)
    largest = written.config["max_batch_size"]
    console.say(f"wrote {written.folder}: {chosen.file}, at most {largest} images a batch")
    verdict = written.facts["robust_export.verdict"]
    if verdict != "pass":
        said = "has not been verified" if verdict == "none" else f"was verified: {verdict}"
        how = f"robust-export verify --model {bundle.path} --artifact {bundle.path / chosen.file}"
        console.say(f"{chosen.file} {said}; {how}")
    if as_json:
        facts = {key.removeprefix("robust_export."): text for key, text in written.facts.items()}
        console.show({"folder": str(written.folder), "command": written.command, "facts": facts})
    else:
        click.echo(shlex.join(written.command))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Return the numbers of "8,32"; none of an empty text."""
    return tuple(counts(f"--{option}", text)) if text.strip() else ()
