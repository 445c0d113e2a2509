"""robust-export page: make the examples of the web page, or a static copy of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robust_export.cli.console import Console
from robust_export.cli.options import (
    COUNT,
    NATURAL,
    PATH,
    data_dir_option,
    device_option,
    drop_none,
    json_option,
    model_option,
)
from robust_export.cli.process import interruptible
from robust_export.errors import InvalidValue

if TYPE_CHECKING:
    from robust_export.bundle import Bundle

TRAINED = "as in training"


@click.command()
@model_option
@click.option(
    "--out", type=PATH, metavar="DIR",
    help="Also write a static copy of the page to this folder; it runs model.onnx in the visitor's browser.",
)  # fmt: skip
@click.option(
    "--ort-web", type=PATH, metavar="DIR", show_default="downloaded by npm",
    help="Folder that contains onnxruntime-web, for --out.",
)  # fmt: skip
@click.option(
    "--images", type=click.IntRange(1, 100), metavar="N", show_default="12",
    help="Number of test images to attack; fewer if the images are large.",
)  # fmt: skip
@click.option("--steps", type=COUNT, metavar="N", show_default="20", help="PGD steps at each radius.")
@click.option("--seed", type=NATURAL, metavar="N", show_default="0", help="Random seed of the attacks.")
@click.option(
    "--eps", metavar="E", show_default=TRAINED,
    help="Radius, for pixels in [0, 1], such as 0.031 or 8/255; attacks use radii up to twice this one.",
)  # fmt: skip
@click.option("--norm", metavar="NORM", show_default=TRAINED, help="Norm of the radius: Linf or L2.")
@data_dir_option("the recipe's")
@device_option("Device for the attacks")
@json_option
def page(
    model: str, out: Path | None, ort_web: Path | None, images: int | None, steps: int | None,
    seed: int | None, eps: str | None, norm: str | None, data_dir: str | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Make the examples of the web page, or a static copy of it.

    Attacks a few test images with PGD, for the page that `robust-export serve` shows at /. Writes
    examples.json into the bundle. With --out it also writes a static copy of the page that needs no inference
    server; the bundle's examples are then reused, unless an option asks for other attacks.
    """
    from robust_export.bundle import Bundle
    from robust_export.serving.ui.examples_file import NAME
    from robust_export.serving.ui.ort_web import find_runtime
    from robust_export.serving.ui.static_copy import check_bundle, write_copy

    if ort_web is not None and out is None:
        raise InvalidValue("--ort-web is used by --out only: give --out as well, or leave it out")
    console, bundle = Console(as_json), Bundle.open(model)
    options = drop_none({"images": images, "steps": steps, "seed": seed})
    threat = drop_none({"eps": eps, "norm": norm})
    with interruptible("interrupted; the examples in the bundle are unchanged"):
        runtime = None
        if out is not None:
            check_bundle(bundle)
            runtime = find_runtime(ort_web, console.print_status)
        if out is None or options or threat or NAME not in bundle.manifest["files"]:
            _attack(bundle, options, threat, console, data_dir=data_dir, device=device)
        if out is not None and runtime is not None:
            write_copy(bundle, out, runtime)
    _print_result(bundle, out, "" if runtime is None else runtime.origin, console)


def _attack(
    bundle: Bundle, options: dict[str, Any], threat: dict[str, Any], console: Console, **settings: Any
) -> None:
    """Write the bundle's examples.json."""
    from dataclasses import asdict

    from robust_export.recipe.recipe_file import dataclass_from_table
    from robust_export.recipe.schema import Threat
    from robust_export.serving.ui.make_examples import AttackOptions, make_examples

    threat_model = dataclass_from_table(Threat, asdict(bundle.threat) | threat, "threat")
    wanted = dataclass_from_table(AttackOptions, options, "page options")
    make_examples(bundle, wanted, threat_model, say=console.print_status, **settings)


def _print_result(bundle: Bundle, out: Path | None, runtime: str, console: Console) -> None:
    """Print how many images are correctly classified at each radius, and the files written."""
    from rich.table import Table

    from robust_export.serving.ui.examples_file import NAME, robust_counts
    from robust_export.serving.ui.static_copy import PAGE

    examples = json.loads(bundle.file(NAME).read_bytes())
    counts, images = robust_counts(examples), len(examples["images"])
    table = Table(
        f"{examples['threat']['norm']} eps", f"correctly classified, of {images}", title_justify="left"
    )
    for radius, count in zip(examples["radii"], counts, strict=True):
        table.add_row(f"{radius:.3g}", str(count))
    page = None if out is None else str(out / PAGE)
    facts = {
        "examples": str(bundle.path / NAME), "images": images, "radii": examples["radii"], "held": counts,
        "page": page, "runtime": runtime or None,
    }  # fmt: skip
    console.print_result(facts, table)
    if out is None:
        console.print_status(
            f"wrote {bundle.path / NAME}; next: robust-export serve --model {bundle.path}, then open the page"
        )
    else:
        console.print_status(f"wrote {page}; try it with: python -m http.server --directory {out}")
