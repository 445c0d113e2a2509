"""robust-export train: train a network against attacks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robust_export.cli.console import Console
from robust_export.cli.options import (
    COUNT,
    NATURAL,
    PATH,
    bundle_name,
    data_dir_option,
    device_option,
    drop_none,
    json_option,
)
from robust_export.cli.process import CommandError, interruptible
from robust_export.errors import TrainingStopped
from robust_export.utils.stop import StopRequest

if TYPE_CHECKING:
    from robust_export.bundle import Bundle
    from robust_export.recipe.schema import Recipe

RECIPE = "the recipe's"


@click.command()
@click.option(
    "--model", metavar="NAME", show_default="r18_sparta, or the recipe's",
    help="Model name, <backbone>_<activation>; `robust-export models` lists all.",
)  # fmt: skip
@click.option(
    "--dataset", metavar="NAME", show_default="digits, or the recipe's",
    help="digits, cifar10, cifar100, svhn or folder:PATH.",
)  # fmt: skip
@click.option(
    "--recipe",
    type=PATH,
    metavar="FILE|NAME",
    help="TOML file or name of a built-in recipe; see docs/recipes.md.",
)
@click.option("--out", type=PATH, show_default="exported/<model>", help="Folder of the bundle to write.")
@click.option(
    "--resume", is_flag=True, help="Continue an interrupted run in --out; start a new one if there is none."
)
@click.option("--force", is_flag=True, help="Replace an existing bundle in --out when training has finished.")
@click.option(
    "--epochs", type=COUNT, metavar="N", show_default=RECIPE, help="Passes over the training images."
)
@click.option(
    "--seed", type=NATURAL, metavar="N", show_default=RECIPE,
    help="Random seed (weights, shuffling, augmentation, attacks).",
)  # fmt: skip
@click.option(
    "--eps", metavar="E", show_default=RECIPE,
    help="Radius of the attacks, for pixels in [0, 1], such as 0.031 or 8/255.",
)  # fmt: skip
@click.option("--norm", metavar="NORM", show_default=RECIPE, help="Norm of the radius: Linf or L2.")
@data_dir_option("data, or the recipe's")
@click.option(
    "--init", metavar="WEIGHTS", show_default="random, or the recipe's",
    help="Initial weights: random, pretrained (timm's) or a .safetensors file.",
)  # fmt: skip
@click.option(
    "--method", metavar="NAME", show_default="pgd-at, or the recipe's",
    help="Training method: pgd-at, trades, mart, fast (single-step attack) or standard (no attack).",
)  # fmt: skip
@click.option(
    "--extra", metavar="folder:PATH", show_default="none, or the recipe's",
    help="Additional training images; they are the fraction data.extra_ratio of each batch.",
)  # fmt: skip
@click.option(
    "--sparta-from", metavar="BUNDLE|FILE", show_default="none, or the recipe's",
    help="Start from the Sparta function of this bundle or sparta.safetensors.",
)  # fmt: skip
@click.option("--freeze-sparta", is_flag=True, default=None, help="Do not train the Sparta function.")
@click.option(
    "--checkpoint-every", type=NATURAL, metavar="N", show_default="1000, or the recipe's",
    help="Training steps between checkpoints within an epoch; 0 saves after each epoch only.",
)  # fmt: skip
@click.option(
    "--tracker", metavar="NAME", show_default="none, or the recipe's",
    help="Log metrics to tensorboard, wandb or mlflow; none turns it off.",
)  # fmt: skip
@device_option("Device to train on")
@json_option
def train(
    model: str | None, dataset: str | None, recipe: Path | None, out: Path | None, resume: bool,
    force: bool, epochs: int | None, seed: int | None, eps: str | None, norm: str | None,
    data_dir: str | None, init: str | None, method: str | None, extra: str | None, sparta_from: str | None,
    freeze_sparta: bool | None, checkpoint_every: int | None, tracker: str | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Train a network against attacks and write it as a bundle.

    Options override the recipe file, and the recipe file overrides the data set's default recipe.

    Ctrl-C or SIGTERM finishes the current training step, saves a checkpoint and exits with code 1; a second
    signal exits at once. `torchrun --nproc-per-node N -m robust_export train ...` trains with N processes.
    """
    from robust_export.bundle import EXPORTED
    from robust_export.utils.work_items import launched_ranks

    console = Console(as_json, quiet=launched_ranks()[0] != 0)
    options: dict[str, dict[str, Any]] = {
        "model": {"name": model, "init": init}, "data": {"name": dataset, "dir": data_dir, "extra": extra},
        "sparta": {"load": sparta_from, "freeze": freeze_sparta}, "threat": {"eps": eps, "norm": norm},
        "train": {
            "epochs": epochs, "seed": seed, "method": method, "checkpoint_every": checkpoint_every,
            "tracker": tracker,
        },
    }  # fmt: skip
    complete = complete_recipe(recipe, options)
    folder = out or EXPORTED / complete.model.name
    advice, stop = f"continue with the same command and --resume ({folder})", StopRequest()
    with interruptible(f"training was interrupted; {advice}", stop):
        from robust_export.training.run import train as run_training

        try:
            bundle = run_training(
                complete, folder, resume=resume, force=force, device=device, stop=stop,
                on_epoch=console.print_epoch, on_step=console.print_step,
            )  # fmt: skip
        except TrainingStopped as error:
            if error.reported_elsewhere:
                sys.exit(error.exit_code)
            raise CommandError(f"{error}\n{advice.capitalize()}") from None
    _print_result(console, bundle, complete.model.name)


def _print_result(console: Console, bundle: Bundle, model: str) -> None:
    facts = bundle.manifest["provenance"]
    console.print_result({
        "bundle": str(bundle.path), "model": model, "epochs": facts["epochs"],
        "best_epoch": facts["best_epoch"], "val": facts["val"], "stopped": facts.get("stopped"),
        "weights_sha256": bundle.manifest["files"]["weights.safetensors"]["sha256"],
    })  # fmt: skip
    if "stopped" in facts:
        console.print_status(f"stopped early: {facts['stopped']}")
    console.print_status(f"wrote {bundle.path}; next: robust-export onnx --model {bundle_name(bundle.path)}")


def complete_recipe(file: Path | None, options: dict[str, dict[str, Any]]) -> Recipe:
    """Return the data set's default recipe, overridden by the file, overridden by the options."""
    from robust_export.recipe.recipe_file import default_recipe, load_recipe, merge, parse

    from_file = load_recipe(file) if file else {}
    from_options = {section: drop_none(table) for section, table in options.items()}
    data = from_file.get("data")
    in_file = data.get("name") if isinstance(data, dict) else None
    name = from_options["data"].get("name") or in_file or "digits"
    from_options["data"] = {"name": name, **from_options["data"]}
    tables = merge(default_recipe(str(name)), from_file, from_options)
    tables.setdefault("model", {}).setdefault("name", "r18_sparta")
    return parse(tables, str(file) if file else "options")
