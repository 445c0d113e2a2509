"""robust-export verify: attack a bundle's reference model and artifacts, and judge the artifacts."""

from __future__ import annotations

from typing import Any

import click

from robust_export.cli.console import Console
from robust_export.cli.options import (
    COUNT,
    NATURAL,
    command_line,
    data_dir_option,
    device_option,
    drop_none,
    json_option,
    model_option,
    split_commas,
)
from robust_export.cli.process import exit_with_verdict, interruptible
from robust_export.runtimes.registry import RUNTIMES

RECIPE = "the recipe's"
TRAINED = "as in training"


@click.command()
@model_option
@click.option(
    "--artifact", multiple=True, metavar="FILE|URL", show_default="all of the bundle's artifacts",
    help="Judge this file, or this served model (http://host:port/v2/models/NAME); may be repeated.",
)  # fmt: skip
@click.option(
    "--runtime", type=click.Choice(("auto", *RUNTIMES)), default="auto", show_default=True,
    help="Runtime that runs the files; auto: ONNX Runtime, with and without the fused kernel.",
)  # fmt: skip
@click.option(
    "--eps", metavar="E", show_default=TRAINED,
    help="Radius of the attacks, for pixels in [0, 1], such as 0.031 or 8/255.",
)  # fmt: skip
@click.option("--norm", metavar="NORM", show_default=TRAINED, help="Norm of the radius: Linf or L2.")
@click.option(
    "--attacks", metavar="A,B", show_default=RECIPE,
    help="Attacks on the reference model: apgd-ce, apgd-dlr, apgd-t, fab-t, square.",
)  # fmt: skip
@click.option(
    "--iterations", type=COUNT, metavar="N", show_default=RECIPE, help="Iterations of each gradient attack."
)
@click.option(
    "--queries", type=COUNT, metavar="N", show_default=RECIPE, help="Queries of the Square attack per image."
)
@click.option(
    "--samples", type=NATURAL, metavar="N", show_default=RECIPE,
    help="Number of test images; 0 uses the whole test split.",
)  # fmt: skip
@click.option("--seed", type=NATURAL, metavar="N", show_default=RECIPE, help="Random seed of the attacks.")
@click.option(
    "--max-drop", metavar="D", show_default="0.02, or the recipe's",
    help="Limit on the drop of clean and of robust accuracy, from 0 to 1.",
)  # fmt: skip
@click.option(
    "--max-clean-drop", metavar="D", show_default="--max-drop",
    help="Limit on the drop of clean accuracy, from 0 to 1.",
)  # fmt: skip
@click.option(
    "--max-gap", metavar="G", show_default="by precision",
    help="Limit on the max abs difference of logits, in units of the reference model's logit scale.",
)  # fmt: skip
@click.option(
    "--min-agreement", metavar="A", show_default="by precision",
    help="Limit on the fraction of images with the same predicted class, from 0 to 1.",
)  # fmt: skip
@click.option(
    "--max-flip-margin", metavar="M", show_default="by precision",
    help="Limit on the reference model's margin where the predicted classes differ, in units of its median "
    "margin.",
)  # fmt: skip
@data_dir_option(RECIPE)
@device_option("Device for the attacks on the reference model")
@json_option
def verify(
    model: str, artifact: tuple[str, ...], runtime: str, eps: str | None, norm: str | None,
    attacks: str | None, data_dir: str | None, device: str, as_json: bool, **overrides: Any,
) -> None:  # fmt: skip
    """Attack a bundle's artifacts, and judge whether they are robust.

    Attacks the reference model (PyTorch) with AutoAttack and each artifact itself, compares them, and applies
    the criteria. Writes verify.json and report.html into the bundle. Exits with code 3 unless every artifact
    passes.


    After an interruption, the same command continues where it stopped. `torchrun --nproc-per-node N -m
    robust_export verify ...` shares the attacks among N processes. The environment variable
    ROBUST_EXPORT_API_KEY is the bearer token sent to a served model.
    """
    from dataclasses import asdict

    from robust_export.bundle import Bundle
    from robust_export.recipe.recipe_file import dataclass_from_table
    from robust_export.recipe.schema import Threat, Verify
    from robust_export.utils.work_items import launched_ranks

    console = Console(as_json, quiet=launched_ranks()[0] != 0)
    bundle = Bundle.open(model)
    if attacks is not None:
        overrides["attacks"] = tuple(split_commas(attacks))
    table = asdict(bundle.recipe().verify) | drop_none(overrides)
    settings = dataclass_from_table(Verify, table, "verify options")
    table = asdict(bundle.threat) | drop_none({"eps": eps, "norm": norm})
    threat = dataclass_from_table(Threat, table, "threat")
    with interruptible("verification was interrupted; the same command continues where it stopped"):
        from robust_export.verification.report.tables import tables
        from robust_export.verification.report.verify_json import to_dict
        from robust_export.verification.verify import verify as run_verification

        report = run_verification(
            bundle, artifact, runtime=runtime, settings=settings, threat=threat, device=device,
            data_dir=data_dir, command=command_line(), say=console.print_status,
        )  # fmt: skip
    console.print_result(to_dict(report), *tables(report))
    for item in report.artifacts:
        for line in item.reasons:
            console.print_status(f"{item.verdict.upper()} {item.file} on {item.where}: {line}")
        for line in item.notes:
            console.print_status(f"note on {item.file} on {item.where}: {line}")
    console.print_status(f"wrote {bundle.path / 'verify.json'} and {bundle.path / 'report.html'}")
    if not console.quiet:  # a launcher stops all processes when one fails, the writing one too
        exit_with_verdict(report.verdict)
