"""Speed of the fused CPU kernel: whole ResNet-18s against other runtimes, and Sparta alone."""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from robust_export.benchmark.end_to_end import FUSED, PEERS, TITLES, bench_network
from robust_export.benchmark.networks import sparta_inputs
from robust_export.benchmark.operator import FUNCTION_BODY, FUSED_BLOCKED, FUSED_NCHW, bench_operator
from robust_export.benchmark.results import BenchmarkReport
from robust_export.export.exporter import export_onnx
from robust_export.nn.models import create_model
from robust_export.nn.sparta import sparta_modules
from robust_export.utils.files import write_atomically, write_json

HERE = Path(__file__).parent
RESULT, PLOT = HERE / "kernel.json", HERE.parent / "docs" / "kernel.svg"
CASES = ((224, (8,)), (32, (1, 64)))
THREADS = (1, 2)


def random_sparta_resnet(name: str, size: int) -> nn.Module:
    """Return an untrained ResNet in eval mode, with random Sparta parameters."""
    torch.manual_seed(0)
    network = create_model(name, num_classes=1000 if size == 224 else 10, image_size=size).eval()
    for module in sparta_modules(network).values():
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.2)
    return network


def feature_map_shapes() -> list[tuple[int, int, int, int]]:
    """Return the input shapes of Sparta in ResNet-18 and -50, for the sizes and batches of CASES."""
    shapes: dict[tuple[int, int, int, int], None] = {}
    for name in ("r18_sparta", "r50_sparta"):
        for size, batches in CASES:
            network = random_sparta_resnet(name, size)
            for (_, c, h, w), _ in sparta_inputs(network, np.zeros((1, 3, size, size), np.float32)):
                shapes |= dict.fromkeys((batch, c, h, w) for batch in batches)
    return sorted(shapes, key=lambda s: (s[0], -s[2], s[1]))


def run(rounds: int) -> BenchmarkReport:
    """Measure the whole models and Sparta alone."""
    comparisons, reports = [], []
    for size, batches in CASES:
        network = random_sparta_resnet("r18_sparta", size)
        with tempfile.TemporaryDirectory() as folder:
            file = export_onnx(network, Path(folder) / "model.onnx", size)
            report = bench_network(
                network, file, "r18_sparta", batches=batches, threads=THREADS, rounds=rounds, say=click.echo
            )
        reports.append(report)
        comparisons += report.comparisons
    for threads in THREADS:
        comparisons += bench_operator(
            feature_map_shapes(), threads=threads, rounds=max(1, rounds // 2), say=click.echo
        )
    return replace(reports[0], comparisons=comparisons)


def targets(result: dict[str, Any]) -> Table:
    """Return a table of the targets and the measured ratios of medians, for two threads."""
    table = Table("ratio", "target", "measured", "met", title="targets of the fused kernel, 2 threads")
    fused, relu, body = TITLES[FUSED], PEERS["relu"], PEERS["body"]

    def row(ratio: str, target: str, value: float, met: bool) -> None:
        table.add_row(ratio, target, f"{value:.2f}", "yes" if met else "NO")

    for item in result["runs"]:
        if item["threads"] != 2:
            continue
        time = {name: timing["median"] for name, timing in item["timings"].items()}
        title = item["title"]
        if "batch" in item:
            row(f"{title}: fused / ReLU variant", "at most 1.15", r := time[fused] / time[relu], r <= 1.15)
            row(f"{title}: fused / function body", "at most 1", r := time[fused] / time[body], r <= 1)
            if item["image_size"] == 224:
                row(
                    f"{title}: fused / OpenVINO",
                    "at most 1.10",
                    r := time[fused] / time[PEERS["openvino"]],
                    r <= 1.1,
                )
                row(
                    f"{title}: PyTorch eager / fused",
                    "at least 1.8",
                    r := time[PEERS["eager"]] / time[fused],
                    r >= 1.8,
                )
            continue
        for name in (FUSED_NCHW, FUSED_BLOCKED):
            if name not in time:
                continue
            gain, copy = time[FUNCTION_BODY] / time[name], item["copy_seconds"] / time[name]
            if item["shape"][2] >= 28:
                row(f"{title}: body / {name}", "at least 2", gain, gain >= 2)
                row(f"{title}: {name}, share of copy bandwidth", "at least 0.7", copy, copy >= 0.7)
            else:
                row(f"{title}: body / {name}", "at least 1", gain, gain >= 1)
    return table


def plot(result: dict[str, Any]) -> None:
    """Draw PLOT for two threads: whole models on the left, Sparta alone on the right."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "robust-export"
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(3, 2), layout="constrained")
    models = [item for item in result["runs"] if item["threads"] == 2 and "batch" in item]
    names = [TITLES[FUSED], *PEERS.values()]
    colours = ["#c2410c", "#57534e", "#a8a29e", "#1d4ed8", "#60a5fa", "#047857", "#6ee7b7"]
    width = 0.8 / len(names)
    for number, (name, colour) in enumerate(zip(names, colours, strict=True)):
        present = [
            (x, item["timings"][name]["ratio"]) for x, item in enumerate(models) if name in item["timings"]
        ]
        places = [x + (number - len(names) / 2 + 0.5) * width for x, _ in present]
        left.bar(places, [ratio for _, ratio in present], width, label=name, color=colour)
    left.axhline(1, color="black", linewidth=0.6)
    labels = [f"{item['image_size']}x{item['image_size']}, batch {item['batch']}" for item in models]
    left.set_xticks(range(len(models)), labels)
    left.set_ylabel("time, as a multiple of the ReLU variant's")
    left.set_title("ResNet-18 on two threads (lower is better)", fontsize=10)
    left.legend(fontsize=7, ncols=2, loc="upper left")
    left.set_ylim(0, max(t["ratio"] for item in models for t in item["timings"].values()) * 1.35)
    alone = [item for item in result["runs"] if item["threads"] == 2 and "shape" in item]
    styles = {FUNCTION_BODY: ("#a8a29e", "s"), FUSED_NCHW: ("#fb923c", "o"), FUSED_BLOCKED: ("#c2410c", "^")}
    for name, (colour, mark) in styles.items():
        points = [
            (item["shape"][2], item["copy_seconds"] / item["timings"][name]["median"])
            for item in alone if name in item["timings"]
        ]  # fmt: skip
        right.scatter(*zip(*points, strict=True), label=name, color=colour, marker=mark, s=22)
    right.set_xscale("log", base=2)
    sides = [4, 8, 16, 32, 56, 112]  # labels of 7, 14 and 28 would overlap them
    right.set_xticks(sides, [str(side) for side in sides], fontsize=7)
    right.minorticks_off()
    right.set_xlabel("height of the feature map")
    right.set_ylabel("speed, as a share of a large copy's")
    right.set_ylim(0)
    right.set_title("Sparta alone on two threads (higher is better)", fontsize=10)
    right.legend(fontsize=7)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    write_atomically(PLOT, svg.getvalue())


@click.command()
@click.option("--plot", "plot_only", is_flag=True, help=f"Only draw docs/{PLOT.name} again.")
@click.option("--rounds", default=10, show_default=True, help="Rounds per model; half for Sparta alone.")
def main(plot_only: bool, rounds: int) -> None:
    """Measure the fused CPU kernel. Writes benchmarks/kernel.json and docs/kernel.svg.

    The networks are untrained, which does not change their speed. The default takes ten minutes on two cores,
    which should be idle.
    """
    if not plot_only:
        write_json(RESULT, run(rounds).to_dict())
    result = json.loads(RESULT.read_text())
    console = Console(width=130)
    console.print(targets(result))
    console.print(result["provenance"]["machine"], result["missing"])
    plot(result)


if __name__ == "__main__":
    main()
