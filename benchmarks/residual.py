"""Upper bound of what fusing the residual addition into Sparta could save.

ONNX Runtime adds the residual in the convolution before it, as long as Sparta uses its blocked layout. An
operator SpartaAdd would read the residual instead of the convolution, so it could save at most the time that
leaving the addition out saves. This script measures that time, on the blocks of a ResNet-18 whose shortcut is
the output of a Sparta node.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import click
import numpy as np
import onnx

from kernel import random_sparta_resnet  # benchmarks/kernel.py
from robust_export.export.exporter import export_onnx
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.utils.timing import measure


def remove_additions(model: onnx.ModelProto) -> int:
    """Remove the additions of a convolution and a Sparta output before Sparta; return their number."""
    producers = {output: node for node in model.graph.node for output in node.output}
    removed = 0
    for node in model.graph.node:
        if node.op_type != "Sparta" or producers[node.input[0]].op_type != "Add":
            continue
        operands = {producers[name].op_type: name for name in producers[node.input[0]].input}
        if set(operands) == {"Conv", "Sparta"}:
            node.input[0] = operands["Conv"]
            removed += 1
    return removed


@click.command()
@click.argument("rounds", default=8)
def main(rounds: int) -> None:
    """Measure a ResNet-18 with and without the residual additions, in ROUNDS turns."""
    for size, batch in ((224, 8), (32, 64)):
        with tempfile.TemporaryDirectory() as folder:
            network = random_sparta_resnet("r18_sparta", size)
            path = export_onnx(network, Path(folder) / "with.onnx", size)
            model = onnx.load(path)
            removed = remove_additions(model)
            without = Path(folder) / "without.onnx"
            onnx.save(model, without)
            pixels = np.random.default_rng(0).random((batch, 3, size, size), dtype=np.float32)
            for threads in (1, 2):
                classifiers = {
                    file.stem: OnnxRuntimeClassifier(file, batch_size=batch, threads=threads)
                    for file in (path, without)
                }
                calls = {name: partial(classifier, pixels) for name, classifier in classifiers.items()}
                timings = measure(calls, rounds=rounds)
                ratio = timings["with"].median / timings["without"].median
                click.echo(
                    f"{size}x{size}, batch {batch}, {threads} threads: {removed} additions cost a factor of "
                    f"{ratio:.3f} at most"
                )


if __name__ == "__main__":
    main()
