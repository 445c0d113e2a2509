"""Time of each operator in a ResNet-18 under ONNX Runtime, fused and with ReLU, from its own profile."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path

import click
import numpy as np

from kernel import random_sparta_resnet  # benchmarks/kernel.py
from robust_export.benchmark.networks import relu_variant
from robust_export.export.exporter import export_onnx
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier

RUNS = 20


@click.command()
@click.argument("size", default=224)
@click.argument("batch", default=8)
@click.argument("threads", default=2)
def main(size: int, batch: int, threads: int) -> None:
    """Print each operator's time as a share of the whole ReLU variant's, for images of SIZE x SIZE pixels."""
    network = random_sparta_resnet("r18_sparta", size)
    pixels = np.random.default_rng(0).random((batch, 3, size, size), dtype=np.float32)
    milliseconds: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, module in (("fused", network), ("ReLU", relu_variant(network))):
            path = export_onnx(module, Path(folder) / "model.onnx", size)
            events = OnnxRuntimeClassifier(path, threads=threads).profile(pixels, runs=RUNS)
            milliseconds[name] = defaultdict(float)
            for event in events:
                milliseconds[name][event["args"]["op_name"]] += event["dur"] / 1e3 / RUNS
    totals = {name: sum(by_operator.values()) for name, by_operator in milliseconds.items()}
    click.echo(f"{size}x{size}, batch {batch}, {threads} threads; shares of the ReLU variant's time")
    click.echo(_row("operator", list(totals)))
    for operator in sorted(set().union(*milliseconds.values()), key=lambda op: -milliseconds["fused"][op]):
        click.echo(
            _row(operator, [f"{milliseconds[name][operator] / totals['ReLU']:.1%}" for name in totals])
        )
    click.echo(_row("all", [f"{total / totals['ReLU']:.1%}" for total in totals.values()]))


def _row(name: str, cells: list[str]) -> str:
    return f"{name:16s}" + "".join(f"{cell:>10s}" for cell in cells)


if __name__ == "__main__":
    main()
