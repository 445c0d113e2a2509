"""robust-export compare: compare activations over several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from robust_export.cli.console import Console
from robust_export.cli.options import COUNT, PATH, data_dir_option, device_option, json_option, split_commas
from robust_export.cli.process import interruptible, require_single_process
from robust_export.errors import InvalidValue


@click.command()
@click.option("--backbone", metavar="NAME", show_default="r18", help="A timm model name, or r18, r34, r50.")
@click.option(
    "--activations", metavar="A,B", show_default="relu,silu,sparta",
    help="Activations to compare; the others are compared with the first. As in model names, or sparta-k1, "
    "sparta-k5, sparta-site, sparta-bias, sparta-silu.",
)  # fmt: skip
@click.option(
    "--dataset", metavar="NAME", show_default="digits",
    help="digits, cifar10, cifar100, svhn or folder:PATH.",
)  # fmt: skip
@click.option(
    "--seeds", type=int, metavar="N", show_default="5", help="Networks per arm, with seeds 0 to N - 1."
)
@click.option(
    "--recipe", type=PATH, metavar="FILE|NAME",
    help="TOML file or name of a recipe, for all runs; see docs/recipes.md.",
)  # fmt: skip
@click.option(
    "--epochs", type=COUNT, metavar="N", show_default="the recipe's", help="Passes over the training images."
)
@click.option(
    "--transfer-from", multiple=True, metavar="BACKBONE[:DATASET]",
    help="Add an arm with a frozen Sparta function learnt on this backbone and data set, and two control "
    "arms; may be repeated.",
)  # fmt: skip
@click.option(
    "--rates", metavar="X,Y", show_default="1",
    help="Multiples of train.lr; each arm uses the best one, chosen on validation images.",
)  # fmt: skip
@click.option(
    "--plan",
    type=PATH,
    metavar="FILE",
    help="TOML file that lists the [[arms]]; see docs/training.md.",
)
@click.option(
    "--out",
    type=PATH,
    default=Path("compared"),
    show_default=True,
    help="Folder of the results and of the runs.",
)
@click.option(
    "--jobs", type=int, metavar="N", show_default="one per core; 1 on a GPU",
    help="Runs at the same time, with one thread each.",
)  # fmt: skip
@data_dir_option("data, or the recipe's")
@device_option("Device to train and attack on")
@json_option
def compare(
    backbone: str | None, activations: str | None, dataset: str | None, seeds: int | None,
    recipe: Path | None, epochs: int | None, transfer_from: tuple[str, ...], rates: str | None,
    plan: Path | None, out: Path, jobs: int | None, data_dir: str | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Compare activations, trained with several seeds each.

    Trains every arm with the same seeds, attacks every network with AutoAttack, and compares the robust
    accuracies seed by seed. Writes results.json, results.md, results.csv and results.png. Finished runs are
    kept: after an interruption, the same command does the remaining ones.
    """
    require_single_process("compare")
    console = Console(as_json)
    if plan:
        _reject_options_of_plan({
            "--backbone": backbone, "--activations": activations, "--dataset": dataset, "--rates": rates,
            "--transfer-from": transfer_from or None,
        })  # fmt: skip
    with interruptible(f"the comparison was interrupted; the same command does the remaining runs ({out})"):
        from robust_export.comparison.plan import load_plan, plan_from_options
        from robust_export.comparison.runner import compare as run_comparison
        from robust_export.recipe.recipe_file import load_recipe, merge

        overrides: dict[str, dict[str, Any]] = {}
        if epochs is not None:
            overrides["train"] = {"epochs": epochs}
        if data_dir is not None:
            overrides["data"] = {"dir": data_dir}
        tables = merge(load_recipe(recipe) if recipe else {}, overrides)
        complete = load_plan(plan, seeds, tables) if plan else plan_from_options(
            backbone or "r18", split_commas(activations or "relu,silu,sparta"), dataset or "digits",
            5 if seeds is None else seeds, tables, transfer_from, _parse_rates(rates or "1"),
        )  # fmt: skip
        result = run_comparison(complete, out, jobs=jobs, device=device, say=console.print_status)
    console.print_result(result.to_dict(), result.table())
    console.print_status(f"wrote results.json, results.md, results.csv and results.png to {out}")


def _reject_options_of_plan(options: dict[str, Any]) -> None:
    """Raise InvalidValue if an option was given that the plan file sets."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InvalidValue(f"{', '.join(given)} with --plan, which sets it as well: leave out one of them")


def _parse_rates(text: str) -> list[float]:
    try:
        return [float(word) for word in split_commas(text)]
    except ValueError:
        raise InvalidValue(f"--rates is {text!r}; expected numbers separated by commas") from None
