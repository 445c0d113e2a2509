"""Where a ResNet-18's time goes in ONNX Runtime: its own profile, by operator, fused and with ReLU.

python benchmarks/breakdown.py [image_size] [batch] [threads]
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from kernel import gated_resnet  # beside this file
from robust_export.benchmark.networks import relu_variant
from robust_export.export.exporter import export_onnx
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier

RUNS = 20


def main(size: int, batch: int, threads: int) -> None:
    network = gated_resnet("r18_sparta", size)
    pixels = np.random.default_rng(0).random((batch, 3, size, size), dtype=np.float32)
    total: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, module in (("fused", network), ("ReLU twin", relu_variant(network))):
            path = export_onnx(module, Path(folder) / "model.onnx", size)
            events = OnnxRuntimeClassifier(path, threads=threads).profile(pixels, runs=RUNS)
            total[name] = defaultdict(float)
            for event in events:
                total[name][event["args"]["op_name"]] += event["dur"] / 1e3 / RUNS
    whole = sum(total["ReLU twin"].values())
    print(f"{size}x{size}, batch {batch}, {threads} threads; shares of the ReLU twin's time")
    operators = sorted(set().union(*total.values()), key=lambda op: -total["fused"][op])
    for operator in operators:
        shares = (f"{total[name][operator] / whole:9.1%}" for name in total)
        print(f"{operator:16s}", *shares)
    print(f"{'all':16s}", *(f"{sum(total[name].values()) / whole:9.1%}" for name in total), "  ", *total)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*(given + [224, 8, 2][len(given) :]))
