"""What fusing the residual addition into Sparta could gain at most: the same network without the additions.

ONNX Runtime adds the residual in the convolution before it, as long as Sparta keeps to its blocked layout.
An operator SpartaAdd would read the residual instead of the convolution, so it could save no more than
leaving the addition out saves. This measures that bound, on the blocks of a ResNet-18 whose shortcut is
what a gate gave.

    python benchmarks/residual.py [rounds]
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from kernel import gated_resnet  # beside this file
from robust_export.export.exporter import export_onnx
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.utils.timing import measure


def without_additions(model: onnx.ModelProto) -> int:
    """Take the additions of two gates' and a convolution's planes out; return how many there were."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    removed = 0
    for node in model.graph.node:
        if node.op_type != "Sparta" or made_by[node.input[0]].op_type != "Add":
            continue
        kinds = {made_by[name].op_type: name for name in made_by[node.input[0]].input}
        if set(kinds) == {"Conv", "Sparta"}:
            node.input[0] = kinds["Conv"]
            removed += 1
    return removed


def main(rounds: int) -> None:
    for size, batch in ((224, 8), (32, 64)):
        with tempfile.TemporaryDirectory() as folder:
            path = export_onnx(gated_resnet("r18_sparta", size), Path(folder) / "with.onnx", size)
            model = onnx.load(path)
            removed = without_additions(model)
            bare = Path(folder) / "without.onnx"
            onnx.save(model, bare)
            pixels = np.random.default_rng(0).random((batch, 3, size, size), dtype=np.float32)
            for threads in (1, 2):
                both = [OnnxRuntimeClassifier(p, batch_size=batch, threads=threads) for p in (path, bare)]
                calls = {
                    name: partial(classifier, pixels)
                    for name, classifier in zip(("with", "without"), both, strict=True)
                }
                found = measure(calls, rounds=rounds)
                ratio = found["with"].median / found["without"].median
                print(
                    f"{size}x{size}, batch {batch}, {threads} threads: {removed} additions cost a factor of "
                    f"{ratio:.3f} at most"
                )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
