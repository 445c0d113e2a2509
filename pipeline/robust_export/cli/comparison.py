"""The command that compares activations: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from robust_export.cli.base import alone, cli, interruptible
from robust_export.cli.console import Console
from robust_export.cli.options import json_option, words
from robust_export.errors import InvalidValue


@cli.command()
@click.option("--backbone", metavar="NAME", help="A timm name, or r18, r34, r50.  [r18]")
@click.option(
    "--activations", metavar="A,B",
    help="Of models' names, or sparta-k1, sparta-k5, sparta-site, sparta-bias, sparta-silu; the first is "
    "what the others are compared with.  [relu,silu,sparta]",
)  # fmt: skip
@click.option("--dataset", metavar="NAME", help="digits, cifar10, cifar100, svhn or folder:PATH.  [digits]")
@click.option("--seeds", type=int, metavar="N", help="Networks an arm, with the seeds 0 to N - 1.  [5]")
@click.option("--recipe", type=click.Path(path_type=Path), help="TOML for all runs; see docs/recipes.md.")
@click.option("--epochs", type=int, help="Passes over the training images.")
@click.option(
    "--transfer-from", multiple=True, metavar="BACKBONE[:DATASET]",
    help="Add arms with frozen gates that were learnt there, and two controls; may be repeated.",
)  # fmt: skip
@click.option("--rates", metavar="X,Y", help="Multiples of train.lr that each arm chooses from.  [1]")
@click.option("--plan", type=click.Path(path_type=Path), help="TOML with [[arms]]; see docs/training.md.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("compared"), show_default=True,
    help="Folder of the results and of the runs.",
)  # fmt: skip
@click.option(
    "--jobs", type=int, metavar="N", help="Runs at a time, one thread each.  [one a core; 1 on a GPU]"
)
@click.option("--data-dir", metavar="DIR", help="Where torchvision's data sets lie.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@json_option
def compare(
    backbone: str | None, activations: str | None, dataset: str | None, seeds: int | None,
    recipe: Path | None, epochs: int | None, transfer_from: tuple[str, ...], rates: str | None,
    plan: Path | None, out: Path, jobs: int | None, data_dir: str | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Train activations with several seeds each, attack them by AutoAttack, and compare them seed by seed.

    Writes results.json, results.md, results.csv and results.png. What is finished is kept: after an
    interruption the same command does what is left.
    """
    alone("compare")
    console = Console(as_json)
    given: dict[str, Any] = {
        "--backbone": backbone, "--activations": activations, "--dataset": dataset, "--rates": rates,
        "--transfer-from": transfer_from or None,
    }  # fmt: skip
    if plan and (both := [name for name, value in given.items() if value is not None]):
        raise InvalidValue(f"{', '.join(both)} with --plan: the plan says it; leave out one of them")
    with interruptible(f"the comparison was interrupted; the same command does what is left ({out})"):
        from robust_export.comparison.plan import load_plan, simple_plan
        from robust_export.comparison.runner import compare as run
        from robust_export.recipe.recipe_file import load_recipe, merge

        changes: dict[str, dict[str, Any]] = {}
        if epochs is not None:
            changes["train"] = {"epochs": epochs}
        if data_dir is not None:
            changes["data"] = {"dir": data_dir}
        layer = merge(load_recipe(recipe) if recipe else {}, changes)
        asked = load_plan(plan, seeds, layer) if plan else simple_plan(
            backbone or "r18", words(activations or "relu,silu,sparta"), dataset or "digits",
            5 if seeds is None else seeds, layer, transfer_from, _numbers(rates or "1"),
        )  # fmt: skip
        found = run(asked, out, jobs=jobs, device=device, say=console.say)
    console.show(found.to_dict(), found.table())
    console.say(f"wrote {out / 'results.md'}, results.json, results.csv and results.png beside it")


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in words(text)]
    except ValueError:
        raise InvalidValue(f"--rates is {text!r}; expected numbers with commas between") from None
