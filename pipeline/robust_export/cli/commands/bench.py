"""robust-export bench: measure the inference time of a bundle's network."""

from __future__ import annotations

from typing import Any

import click

from robust_export.cli.console import Console
from robust_export.cli.options import json_option, model_option, parse_integers, split_commas
from robust_export.cli.process import interruptible
from robust_export.errors import InvalidValue


@click.command()
@model_option
@click.option(
    "--batch", "batches", default="1,32", show_default=True, metavar="N,M", help="Batch sizes, in images."
)
@click.option("--threads", metavar="N,M", show_default="1", help="Numbers of CPU threads per inference.")
@click.option(
    "--against", metavar="A,B", show_default="all",
    help="What to compare with: relu, body, eager, compile, openvino, openvino-relu; "
    "with --runtime tensorrt: plugin, aot, body, relu, compile.",
)  # fmt: skip
@click.option(
    "--rounds", type=int, default=10, show_default=True, metavar="N",
    help="Rounds of measurement; the implementations are interleaved.",
)  # fmt: skip
@click.option(
    "--operator", is_flag=True, help="Also measure Sparta alone, on each shape of feature map of the model."
)
@click.option(
    "--runtime", type=click.Choice(["onnxruntime", "tensorrt"]), default="onnxruntime", show_default=True,
    help="tensorrt builds engines for this machine's GPU and measures them.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16"]), show_default="fp32",
    help="Precision of the TensorRT engines; only with --runtime tensorrt.",
)  # fmt: skip
@json_option
def bench(
    model: str, batches: str, threads: str | None, against: str | None, rounds: int, operator: bool,
    runtime: str, precision: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure the inference time of a bundle's network.

    Runs model.onnx in ONNX Runtime with the fused kernel, side by side with the function body, the ReLU
    variant (the same weights with ReLU), PyTorch and OpenVINO.
    """
    from robust_export.benchmark.end_to_end import bench_bundle
    from robust_export.benchmark.engines import bench_engines
    from robust_export.bundle import Bundle

    console = Console(as_json)
    bundle, sizes = Bundle.open(model), parse_integers("--batch", batches)
    settings: dict[str, Any] = {"rounds": rounds, "say": console.print_status}
    if against is not None:
        settings["against"] = tuple(split_commas(against))
    with interruptible("the benchmark was interrupted"):
        if runtime == "tensorrt":
            if operator or threads:
                raise InvalidValue("--operator and --threads need --runtime onnxruntime: leave them out")
            result = bench_engines(bundle, batches=sizes, precision=precision or "fp32", **settings)
        else:
            if precision:
                raise InvalidValue("--precision needs --runtime tensorrt: leave it out")
            counts = parse_integers("--threads", threads or "1")
            result = bench_bundle(bundle, batches=sizes, threads=counts, operator=operator, **settings)
    console.print_result(result.to_dict(), *result.tables())
    for name, why in result.missing.items():
        console.print_status(f"not measured: {name}: {why}")
