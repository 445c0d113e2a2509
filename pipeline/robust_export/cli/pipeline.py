"""The commands of the pipeline: demo, train, onnx, verify, bench."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from robust_export.cli.base import Failure, alone, cli, interruptible, json_option, model_option, typed
from robust_export.console import Console
from robust_export.errors import InvalidValue, TrainingStopped
from robust_export.runtimes import RUNTIMES
from robust_export.stop import Stop

GATE_FAILED = 3  # the exit code of a gate that did not hold


@cli.command()
@json_option
def demo(as_json: bool) -> None:
    """Train, export and verify on the built-in digits, in minutes; writes exported/demo."""
    alone("demo")
    console = Console(as_json)
    with interruptible("the demo was interrupted; an older exported/demo is untouched"):
        from robust_export.demo import run_demo

        result = run_demo(say=console.say, on_epoch=console.epoch)
    console.show(result.to_dict(), *result.tables())
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    console.say(f"bundle {result.bundle} ({stages})")
    _exit_by(result.report.verdict)


@cli.command()
@click.option("--model", metavar="NAME", help="<backbone>_<activation>, such as r18_sparta (the default).")
@click.option(
    "--dataset", metavar="NAME", help="digits (the default), cifar10, cifar100, svhn or folder:PATH."
)
@click.option("--recipe", type=click.Path(path_type=Path), help="A TOML file; see docs/recipes.md.")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder.  [exported/<model>]")
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped, or start.")
@click.option("--force", is_flag=True, help="Replace the bundle in --out once the new one is finished.")
@click.option("--epochs", type=int, help="Passes over the training images.")
@click.option("--seed", type=int, help="Of weights, order, augmentation and attacks.")
@click.option("--eps", metavar="E", help='The attack\'s budget, such as 0.031 or "8/255".')
@click.option("--norm", metavar="NORM", help="Of the budget: Linf or L2.")
@click.option("--data-dir", metavar="DIR", help="Where torchvision's data sets lie.")
@click.option("--init", metavar="WHAT", help="random, pretrained (timm's weights) or a .safetensors file.")
@click.option(
    "--method", metavar="NAME", help="pgd-at, trades, mart, fast (one step) or standard (no attack)."
)
@click.option("--extra", metavar="folder:PATH", help="More training images, mixed in at data.extra_ratio.")
@click.option(
    "--sparta-from", metavar="BUNDLE", help="Start from this bundle's Sparta function, or a file's."
)
@click.option("--freeze-sparta", is_flag=True, default=None, help="The Sparta function does not learn.")
@click.option("--checkpoint-every", type=int, metavar="N", help="Steps between checkpoints.  [1000]")
@click.option("--tracker", metavar="NAME", help="tensorboard, wandb or mlflow.  [none]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@json_option
def train(
    model: str | None, dataset: str | None, recipe: Path | None, out: Path | None, resume: bool,
    force: bool, epochs: int | None, seed: int | None, eps: str | None, norm: str | None,
    data_dir: str | None, init: str | None, method: str | None, extra: str | None, sparta_from: str | None,
    freeze_sparta: bool | None, checkpoint_every: int | None, tracker: str | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Train a network against attacks and write it as a bundle.

    Options go before the recipe file, and the recipe file before the data set's own defaults. Ctrl-C and
    SIGTERM let the step finish and save the state (exit code 1); a second one interrupts at once.
    """
    from robust_export.bundle import HOME
    from robust_export.units import launched

    console = Console(as_json, quiet=launched()[0] != 0)
    options: dict[str, dict[str, Any]] = {
        "model": {"name": model, "init": init}, "data": {"name": dataset, "dir": data_dir, "extra": extra},
        "sparta": {"load": sparta_from, "freeze": freeze_sparta}, "threat": {"eps": eps, "norm": norm},
        "train": {
            "epochs": epochs, "seed": seed, "method": method, "checkpoint_every": checkpoint_every,
            "tracker": tracker,
        },
    }  # fmt: skip
    asked = _recipe(recipe, options)
    target = out or HOME / asked.model.name
    go_on, stop = f"go on with the same command and --resume ({target})", Stop()
    with interruptible(f"training was interrupted; {go_on}", stop):
        from robust_export.training import train as run

        try:
            bundle = run(
                asked, target, resume=resume, force=force, device=device, stop=stop,
                on_epoch=console.epoch, on_step=console.step,
            )  # fmt: skip
        except TrainingStopped as error:
            if error.told:
                sys.exit(error.exit_code)
            raise Failure(f"{error}\n{go_on.capitalize()}") from None
    facts = bundle.manifest["provenance"]
    console.show({
        "bundle": str(bundle.path), "model": asked.model.name, "epochs": facts["epochs"],
        "best_epoch": facts["best_epoch"], "val": facts["val"], "stopped": facts.get("stopped"),
        "weights_sha256": bundle.manifest["files"]["weights.safetensors"]["sha256"],
    })  # fmt: skip
    if "stopped" in facts:
        console.say(f"stopped early: {facts['stopped']}")
    console.say(f"wrote {bundle.path}; next: robust-export onnx --model {_name(bundle.path)}")


@cli.command()
@model_option
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16", "int8"]), default="fp32", show_default=True,
    help="Of weights and arithmetic.",
)  # fmt: skip
@click.option("--opset", type=int, help="ONNX opset.  [20; 22 for bf16]")
@click.option(
    "--calibration", type=click.Choice(["clean", "adversarial", "both"]),
    help="Training images that int8 measures ranges on.  [clean]",
)  # fmt: skip
@click.option("--calibration-samples", type=int, metavar="N", help="How many of them.  [512]")
@click.option("--data-dir", metavar="DIR", help="Where torchvision's data sets lie.  [the recipe's]")
@json_option
def onnx(
    model: str, precision: str, opset: int | None, calibration: str | None, calibration_samples: int | None,
    data_dir: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Write a bundle's network as one self-contained ONNX file with ai.sparta::Sparta nodes."""
    from robust_export.bundle import Bundle
    from robust_export.errors import ArtifactError
    from robust_export.export.bundle import export_bundle
    from robust_export.export.calibration import Calibration
    from robust_export.onnx_file import read_model, sparta_nodes
    from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier

    console = Console(as_json)
    bundle = Bundle.open(model)
    chosen = _given({"images": calibration, "samples": calibration_samples, "data_dir": data_dir})
    console.say(f"exporting {bundle.name} in {precision}")
    path = export_bundle(bundle, opset, precision, Calibration(**chosen) if chosen else None)
    nodes, fused, line = len(sparta_nodes(read_model(path))), 0, ""
    try:
        file = OnnxRuntimeClassifier(path)
        fused = file.fused_nodes()
        line = f"{fused} of {nodes} Sparta nodes run fused here" if fused else file.why_stock()
        if file.falls_back:
            console.say(f"ONNX Runtime has no {precision} arithmetic here; it computes in another precision")
    except ArtifactError as error:  # a precision that this machine has no arithmetic for
        line = str(error)
    facts = {"file": str(path), **bundle.manifest["files"][path.name]}
    console.show(facts | {"sparta_nodes": nodes, "fused_nodes": fused})
    if nodes and line:
        console.say(line)
    console.say(f"wrote {path}; next: robust-export verify --model {_name(bundle.path)}")


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
    from robust_export.config import Threat, Verify
    from robust_export.recipe import build
    from robust_export.units import launched

    console = Console(as_json, quiet=launched()[0] != 0)
    bundle = Bundle.open(model)
    if attacks is not None:
        changes["attacks"] = tuple(name.strip() for name in attacks.split(","))
    settings = build(Verify, asdict(bundle.recipe().verify) | _given(changes), "verify options")
    threat = build(Threat, asdict(bundle.threat) | _given({"eps": eps, "norm": norm}), "threat")
    with interruptible("verification was interrupted; the same command goes on where it stopped"):
        from robust_export.verification import verify as run
        from robust_export.verification.tables import tables

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
        _exit_by(report.verdict)


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
    from robust_export.bench import bench_bundle, bench_engines
    from robust_export.bundle import Bundle

    console = Console(as_json)
    bundle, sizes = Bundle.open(model), _counts("--batch", batches)
    given: dict[str, Any] = {"rounds": rounds, "say": console.say}
    if against is not None:
        given["against"] = tuple(name.strip() for name in against.split(","))
    with interruptible("the benchmark was interrupted"):
        if runtime == "tensorrt":
            if operator or threads:
                raise InvalidValue("--operator and --threads are of --runtime onnxruntime: leave them out")
            result = bench_engines(bundle, batches=sizes, precision=precision or "fp32", **given)
        else:
            if precision:
                raise InvalidValue("--precision is of --runtime tensorrt: leave it out")
            counts = _counts("--threads", threads or "1")
            result = bench_bundle(bundle, batches=sizes, threads=counts, operator=operator, **given)
    console.show(result.to_dict(), *result.tables())
    for name, why in result.missing.items():
        console.say(f"not measured: {name}: {why}")


def _counts(option: str, text: str) -> list[int]:
    """Return the whole numbers of "1,32"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidValue(f"{option} is {text!r}; expected whole numbers with commas between") from None


def _recipe(file: Path | None, options: dict[str, dict[str, Any]]) -> Any:
    """Return the recipe: the data set's defaults, the file over them, the options over both."""
    from robust_export.recipe import default_recipe, load_recipe, merge, parse

    given = load_recipe(file) if file else {}
    asked = {section: _given(table) for section, table in options.items()}
    data = given.get("data")
    named = data.get("name") if isinstance(data, dict) else None
    name = asked["data"].get("name") or named or "digits"
    layers = merge(default_recipe(str(name)), given, {**asked, "data": {"name": name, **asked["data"]}})
    layers.setdefault("model", {}).setdefault("name", "r18_sparta")
    return parse(layers, str(file) if file else "options")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _name(path: Path) -> str:
    """Return how --model names the bundle in `path`."""
    from robust_export.bundle import HOME

    return path.name if path.parent == HOME else str(path)


def _exit_by(verdict: str) -> None:
    if verdict != "pass":
        sys.exit(GATE_FAILED)
