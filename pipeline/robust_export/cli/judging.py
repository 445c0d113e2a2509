"""The commands that judge a model: verify, bench."""

from __future__ import annotations

from typing import Any

import click

from robust_export.cli.base import cli, exit_by, interruptible, typed
from robust_export.cli.console import Console
from robust_export.cli.options import counts, given, json_option, model_option, words
from robust_export.errors import InvalidValue
from robust_export.runtimes.registry import RUNTIMES


@cli.command()
@model_option
@click.option(
    "--artifact", multiple=True, metavar="FILE|URL",
    help="Judge this file, or http://host:port/v2/models/NAME; may be repeated.  [all of the bundle's]",
)  # fmt: skip
@click.option(
    "--runtime", type=click.Choice(("auto", *RUNTIMES)), default="auto", show_default=True,
    help="What runs files.",
)  # fmt: skip
@click.option("--eps", metavar="E", help="Of the attacks.  [what the model was trained for]")
@click.option("--norm", metavar="NORM", help="Linf or L2.  [what the model was trained for]")
@click.option("--attacks", metavar="A,B", help="apgd-ce, apgd-dlr, apgd-t, fab-t, square.  [the recipe's]")
@click.option("--iterations", type=int, help="Of each attack with gradients.  [the recipe's]")
@click.option("--queries", type=int, help="Of Square, an image.  [the recipe's]")
@click.option("--samples", type=int, help="Images of the test split.  [the recipe's; 0 takes all]")
@click.option("--seed", type=int, help="Of the attacks.  [the recipe's]")
@click.option("--max-drop", metavar="D", help="Largest drop of accuracy that passes.  [the recipe's, 0.02]")
@click.option("--max-clean-drop", metavar="D", help="The same of clean accuracy alone.  [--max-drop]")
@click.option(
    "--max-gap", metavar="G", help="Largest difference of a logit, in logit scales.  [by precision]"
)
@click.option("--min-agreement", metavar="A", help="Smallest share of equal decisions.  [by precision]")
@click.option(
    "--max-flip-margin", metavar="M",
    help="Largest margin at which a decision may flip, in median margins.  [by precision]",
)  # fmt: skip
@click.option("--data-dir", metavar="DIR", help="Where torchvision's data sets lie.  [the recipe's]")
@click.option("--device", default="auto", show_default=True, help="Of the attacks on the source.")
@json_option
def verify(
    model: str, artifact: tuple[str, ...], runtime: str, eps: str | None, norm: str | None,
    attacks: str | None, data_dir: str | None, device: str, as_json: bool, **changes: Any,
) -> None:  # fmt: skip
    """Attack a bundle's network and its artifacts, and judge the artifacts; writes verify.json, report.html.

    After an interruption the same command goes on where it stopped. `torchrun --nproc-per-node N -m
    robust_export verify ...` shares the attacks among N processes.
    """
    from dataclasses import asdict

    from robust_export.bundle import Bundle
    from robust_export.recipe.recipe_file import build
    from robust_export.recipe.schema import Threat, Verify
    from robust_export.utils.work_items import launched

    console = Console(as_json, quiet=launched()[0] != 0)
    bundle = Bundle.open(model)
    if attacks is not None:
        changes["attacks"] = tuple(words(attacks))
    settings = build(Verify, asdict(bundle.recipe().verify) | given(changes), "verify options")
    threat = build(Threat, asdict(bundle.threat) | given({"eps": eps, "norm": norm}), "threat")
    with interruptible("verification was interrupted; the same command goes on where it stopped"):
        from robust_export.verification.report.tables import tables
        from robust_export.verification.verify import verify as run

        report = run(
            bundle, artifact, runtime=runtime, settings=settings, threat=threat, device=device,
            data_dir=data_dir, command=typed(), say=console.say,
        )  # fmt: skip
    console.show(report.to_dict(), *tables(report))
    for item in report.artifacts:
        for line in item.reasons:
            console.say(f"{item.verdict.upper()} {item.file} on {item.where}: {line}")
        for line in item.notes:
            console.say(f"note on {item.file} on {item.where}: {line}")
    console.say(f"wrote {bundle.path / 'verify.json'} and {bundle.path / 'report.html'}")
    if not console.quiet:  # a launcher stops all processes when one of them fails, the writing one too
        exit_by(report.verdict)


@cli.command()
@model_option
@click.option(
    "--batch", "batches", default="1,32", show_default=True, metavar="N,M", help="Images at a time."
)
@click.option("--threads", metavar="N,M", help="Of one inference.  [1]")
@click.option(
    "--against",
    metavar="A,B",
    help="relu, body, eager, compile, openvino, openvino-relu; plugin, aot, body, relu, compile of TensorRT. "
    "[all of them]",
)
@click.option("--rounds", type=int, default=10, show_default=True, help="Turns that everything gets.")
@click.option("--operator", is_flag=True, help="Measure Sparta alone on the model's planes as well.")
@click.option(
    "--runtime", type=click.Choice(["onnxruntime", "tensorrt"]), default="onnxruntime", show_default=True,
    help="tensorrt builds engines on the GPU and measures those.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16"]), help="Of TensorRT's engines.  [fp32]"
)
@json_option
def bench(
    model: str, batches: str, threads: str | None, against: str | None, rounds: int, operator: bool,
    runtime: str, precision: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure a bundle's network side by side with its ReLU twin and with other runtimes."""
    from robust_export.benchmark.end_to_end import bench_bundle
    from robust_export.benchmark.engines import bench_engines
    from robust_export.bundle import Bundle

    console = Console(as_json)
    bundle, sizes = Bundle.open(model), counts("--batch", batches)
    settings: dict[str, Any] = {"rounds": rounds, "say": console.say}
    if against is not None:
        settings["against"] = tuple(words(against))
    with interruptible("the benchmark was interrupted"):
        if runtime == "tensorrt":
            if operator or threads:
                raise InvalidValue("--operator and --threads are of --runtime onnxruntime: leave them out")
            result = bench_engines(bundle, batches=sizes, precision=precision or "fp32", **settings)
        else:
            if precision:
                raise InvalidValue("--precision is of --runtime tensorrt: leave it out")
            threaded = counts("--threads", threads or "1")
            result = bench_bundle(bundle, batches=sizes, threads=threaded, operator=operator, **settings)
    console.show(result.to_dict(), *result.tables())
    for name, why in result.missing.items():
        console.say(f"not measured: {name}: {why}")
