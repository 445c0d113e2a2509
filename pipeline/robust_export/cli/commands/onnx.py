"""robust-export onnx: export a bundle's network to an ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from robust_export.cli.console import Console
from robust_export.cli.options import (
    COUNT,
    bundle_name,
    data_dir_option,
    drop_none,
    json_option,
    model_option,
    precision_option,
)


@click.command()
@model_option
@precision_option("Number format of weights and arithmetic.")
@click.option(
    "--opset", type=click.IntRange(18, 25), metavar="N", show_default="20; 22 for bf16",
    help="Version of the ONNX operator set.",
)  # fmt: skip
@click.option(
    "--calibration", type=click.Choice(["clean", "adversarial", "both"]), show_default="clean",
    help="For int8: the training images whose activations set the quantisation ranges.",
)  # fmt: skip
@click.option(
    "--calibration-samples", type=COUNT, metavar="N", show_default="512",
    help="For int8: number of calibration images.",
)  # fmt: skip
@data_dir_option("the recipe's")
@json_option
def onnx(
    model: str, precision: str, opset: int | None, calibration: str | None, calibration_samples: int | None,
    data_dir: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Export a bundle's network to an ONNX file.

    Writes model.onnx, or model.PRECISION.onnx, into the bundle. The file is self-contained: ai.sparta::Sparta
    nodes come with their function body, so that any ONNX runtime can run it.
    """
    from robust_export.bundle import Bundle
    from robust_export.export.bundle_onnx import export_bundle
    from robust_export.export.calibration import Calibration

    console = Console(as_json)
    bundle = Bundle.open(model)
    options = drop_none({"images": calibration, "samples": calibration_samples, "data_dir": data_dir})
    console.print_status(f"exporting {bundle.name} in {precision}")
    path = export_bundle(bundle, opset, precision, Calibration(**options) if options else None)
    nodes, fused, notes = _count_nodes(path, precision)
    facts = {"file": str(path), **bundle.manifest["files"][path.name]}
    console.print_result(facts | {"sparta_nodes": nodes, "fused_nodes": fused})
    for note in notes:
        console.print_status(note)
    console.print_status(f"wrote {path}; next: robust-export verify --model {bundle_name(bundle.path)}")


def _count_nodes(path: Path, precision: str) -> tuple[int, int, list[str]]:
    """Return the number of Sparta nodes, how many run fused on this machine, and notes for the user."""
    from robust_export.errors import ArtifactError
    from robust_export.runtimes.onnx_model import read_model, sparta_nodes
    from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier

    nodes, fused, notes = len(sparta_nodes(read_model(path))), 0, []
    try:
        classifier = OnnxRuntimeClassifier(path)
        fused = classifier.fused_nodes()
        line = f"{fused} of {nodes} Sparta nodes run fused on this machine"
        if not fused:
            line = classifier.why_not_fused()
        if classifier.falls_back_to_fp32:
            notes.append(f"no {precision} arithmetic on this machine: ONNX Runtime computes in float32")
    except ArtifactError as error:  # ONNX Runtime cannot run the file's precision on this machine
        line = str(error)
    return nodes, fused, [*notes, line] if nodes else notes
