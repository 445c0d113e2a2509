"""Measure the error of ONNX Runtime's integer kernels on an int8 file.

    robust-export onnx --model demo --precision int8
    python benchmarks/integer_kernels.py exported/demo

prints, for 64 images of the test split, the max abs difference of the logits from those of the ONNX reference
evaluator, in units of the largest logit of model.onnx: for ONNX Runtime with its fusions to integer kernels
and without them. On CPUs without VNNI these kernels add pairs of products in 16 bits, which saturates.
"""

from __future__ import annotations

import click
import numpy as np
import onnxruntime as ort

from robust_export.bundle import Bundle
from robust_export.data.datasets import load_dataset
from robust_export.runtimes.registry import open_file
from robust_export.utils.provenance import machine

IMAGES = 64


@click.command()
@click.argument("path", metavar="BUNDLE")
def main(path: str) -> None:
    """Compare ONNX Runtime's logits of BUNDLE's int8 file with the ONNX reference evaluator's."""
    bundle = Bundle.open(path)
    spec, data = bundle.recipe().model, bundle.recipe().data
    images = load_dataset(data.name, "test", spec.image_size, spec.in_chans, data.dir)
    pixels = images.batch(range(IMAGES))[0].numpy()
    file = bundle.file("model.int8.onnx")
    expected = open_file(file, "reference")(pixels)
    scale = np.abs(open_file(bundle.file("model.onnx"), kernel=False)(pixels)).max()
    print(f"{bundle.name} on {_cpu()}, {IMAGES} images:")
    for name, level in (
        ("with integer kernels", ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
        ("without fusions", ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
    ):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        logits = session.run(None, {session.get_inputs()[0].name: pixels})[0]
        difference = np.abs(logits - expected).max() / scale
        agreement = (logits.argmax(1) == expected.argmax(1)).mean()
        print(f"  {name}: max abs difference {difference:.2g} logit scales, top-1 agreement {agreement:.1%}")


def _cpu() -> str:
    """Return the CPU's name, and whether it has VNNI."""
    import torch

    name = machine(torch.device("cpu"))["cpu"]
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        vnni = "vnni" in info.read()
    return f"{name}, {'with' if vnni else 'without'} VNNI"


if __name__ == "__main__":
    main()
