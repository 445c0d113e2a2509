"""The commands that make a model: demo, train, onnx."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from robust_export.cli.base import Failure, alone, cli, exit_by, interruptible
from robust_export.cli.console import Console
from robust_export.cli.options import bundle_name, given, json_option, model_option, precision_option
from robust_export.errors import TrainingStopped
from robust_export.utils.stop import Stop


@cli.command()
@json_option
def demo(as_json: bool) -> None:
    """Train, export and verify on the built-in digits, in minutes; writes exported/demo."""
    alone("demo")
    console = Console(as_json)
    with interruptible("the demo was interrupted; an older exported/demo is untouched"):
        from robust_export.cli.demo import run_demo

        result = run_demo(say=console.say, on_epoch=console.epoch)
    console.show(result.to_dict(), *result.tables())
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    console.say(f"bundle {result.bundle} ({stages})")
    exit_by(result.report.verdict)


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
    from robust_export.utils.work_items import launched

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
        from robust_export.training.run import train as run

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
    console.say(f"wrote {bundle.path}; next: robust-export onnx --model {bundle_name(bundle.path)}")


@cli.command()
@model_option
@precision_option("Of weights and arithmetic.")
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
    from robust_export.export.bundle_onnx import export_bundle
    from robust_export.export.calibration import Calibration
    from robust_export.runtimes.onnx_model import read_model, sparta_nodes
    from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier

    console = Console(as_json)
    bundle = Bundle.open(model)
    chosen = given({"images": calibration, "samples": calibration_samples, "data_dir": data_dir})
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
    console.say(f"wrote {path}; next: robust-export verify --model {bundle_name(bundle.path)}")


def _recipe(file: Path | None, options: dict[str, dict[str, Any]]) -> Any:
    """Return the recipe: the data set's defaults, the file over them, the options over both."""
    from robust_export.recipe.recipe_file import default_recipe, load_recipe, merge, parse

    read = load_recipe(file) if file else {}
    asked = {section: given(table) for section, table in options.items()}
    data = read.get("data")
    named = data.get("name") if isinstance(data, dict) else None
    name = asked["data"].get("name") or named or "digits"
    layers = merge(default_recipe(str(name)), read, {**asked, "data": {"name": name, **asked["data"]}})
    layers.setdefault("model", {}).setdefault("name", "r18_sparta")
    return parse(layers, str(file) if file else "options")
