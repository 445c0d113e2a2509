"""The command that makes what the page at / shows, and copies of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robust_export.cli.base import cli, interruptible
from robust_export.cli.console import Console
from robust_export.cli.options import given, json_option, model_option
from robust_export.errors import InvalidValue

if TYPE_CHECKING:
    from robust_export.bundle import Bundle


@cli.command()
@model_option
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR",
    help="Write a copy of the page here, whose visitors' browsers run model.onnx.",
)  # fmt: skip
@click.option(
    "--ort-web", type=click.Path(path_type=Path), metavar="DIR",
    help="A folder that has onnxruntime-web, for --out.  [npm fetches it]",
)  # fmt: skip
@click.option("--images", type=int, metavar="N", help="Test images to attack; large ones are fewer.  [12]")
@click.option("--steps", type=int, metavar="N", help="Of PGD at each radius.  [20]")
@click.option("--seed", type=int, metavar="N", help="Of the attacks.  [0]")
@click.option("--eps", metavar="E", help="The budget; attacks go to twice of it.  [the model's own]")
@click.option("--norm", metavar="NORM", help="Linf or L2.  [the model's own]")
@click.option("--data-dir", metavar="DIR", help="Where torchvision's data sets lie.  [the recipe's]")
@click.option("--device", default="auto", show_default=True, help="Of the attacks.")
@json_option
def page(
    model: str, out: Path | None, ort_web: Path | None, images: int | None, steps: int | None,
    seed: int | None, eps: str | None, norm: str | None, data_dir: str | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Attack a few test images for the page that serve shows at /; writes examples.json into the bundle.

    With --out it also writes a copy of the page that needs no server of ours. The attacks that the bundle has
    are then kept, unless an option asks for others.
    """
    from robust_export.bundle import Bundle
    from robust_export.serving.ui.examples_file import NAME
    from robust_export.serving.ui.ort_web import find
    from robust_export.serving.ui.static_copy import check, write_copy

    if ort_web is not None and out is None:
        raise InvalidValue("--ort-web is of a copy of the page: give --out as well, or leave it out")
    console, bundle = Console(as_json), Bundle.open(model)
    wanted = given({"images": images, "steps": steps, "seed": seed})
    threat = given({"eps": eps, "norm": norm})
    with interruptible("the page was interrupted; what the bundle had is untouched"):
        runtime = None
        if out is not None:
            check(bundle)
            runtime = find(ort_web, console.say)
        if out is None or wanted or threat or NAME not in bundle.manifest["files"]:
            _attack(bundle, wanted, threat, console, data_dir=data_dir, device=device)
        if out is not None and runtime is not None:
            write_copy(bundle, out, runtime)
    _show(bundle, out, "" if runtime is None else runtime.origin, console)


def _attack(
    bundle: Bundle, wanted: dict[str, Any], threat: dict[str, Any], console: Console, **where: Any
) -> None:
    """Make the bundle's examples.json."""
    from dataclasses import asdict

    from robust_export.recipe.recipe_file import build
    from robust_export.recipe.schema import Threat
    from robust_export.serving.ui.make_examples import Wanted, make_examples

    budget = build(Threat, asdict(bundle.threat) | threat, "threat")
    make_examples(bundle, build(Wanted, wanted, "page options"), budget, say=console.say, **where)


def _show(bundle: Bundle, out: Path | None, runtime: str, console: Console) -> None:
    """Print how many images withstand the attacks, by radius, and what was written."""
    from rich.table import Table

    from robust_export.serving.ui.examples_file import NAME, held
    from robust_export.serving.ui.static_copy import PAGE

    found = json.loads(bundle.file(NAME).read_bytes())
    counts, images = held(found), len(found["images"])
    table = Table(f"{found['threat']['norm']} eps", f"read right, of {images}", title_justify="left")
    for radius, count in zip(found["radii"], counts, strict=True):
        table.add_row(f"{radius:.3g}", str(count))
    page = None if out is None else str(out / PAGE)
    facts = {
        "examples": str(bundle.path / NAME), "images": images, "radii": found["radii"], "held": counts,
        "page": page, "runtime": runtime or None,
    }  # fmt: skip
    console.show(facts, table)
    if out is None:
        console.say(
            f"wrote {bundle.path / NAME}; next: robust-export serve --model {bundle.path}, then open its page"
        )
    else:
        console.say(f"wrote {page}; try it with: python -m http.server --directory {out}")
