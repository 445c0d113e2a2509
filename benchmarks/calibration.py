"""What int8 keeps of a bundle's accuracy, by what its ranges are calibrated on and how.

    python benchmarks/calibration.py [BUNDLE]        exported/demo by default; nothing is written into it

Robust accuracy is that under three runs of PGD with 20 steps on the PyTorch network: its examples are
transferred to the file. Each line is the mean over four drawings of the calibration images.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from rich.console import Console
from rich.table import Table
from torch import Generator, nn

from robust_export.attacks.pgd import pgd
from robust_export.bundle import Bundle
from robust_export.data.datasets import load_dataset
from robust_export.export.calibration import KINDS, Calibration, calibration_images
from robust_export.export.exporter import to_onnx
from robust_export.export.quantize import PRODUCTS, quantise
from robust_export.nn.load import load
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.pytorch import PyTorchClassifier

MORE = ("Add", "AveragePool")  # ONNX Runtime would quantise them too
METHODS = ("MinMax", "Entropy", "Percentile")
STEPS, STEP_SIZE, RUNS = 20, 0.125, 3  # of PGD; its step in units of eps
SEEDS = range(4)

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Judge:
    """Images as they are and attacked, and what the network says of them."""

    images: list[Array]  # clean, then one of each run of PGD
    labels: npt.NDArray[np.int64]
    source: list[Array]  # logits, of the same

    def judge(self, logits: list[Array]) -> list[float]:
        """Return clean and robust accuracy, the logits' RMS error on both, and agreement under attack."""
        right = [out.argmax(1) == self.labels for out in logits]
        errors = [float(np.sqrt(((a - b) ** 2).mean())) for a, b in zip(logits, self.source, strict=True)]
        same = [(a.argmax(1) == b.argmax(1)).mean() for a, b in zip(logits, self.source, strict=True)]
        return [
            float(right[0].mean()), float(np.all(right, 0).mean()), errors[0], float(np.mean(errors[1:])),
            float(np.mean(same[1:])),
        ]  # fmt: skip


def main(name: str) -> None:
    bundle = Bundle.open(name)
    recipe, network = bundle.recipe(), load(bundle)
    spec = recipe.model
    judge = attacked(bundle, network)
    model = to_onnx(network, spec.image_size, spec.in_chans)
    table = Table(title=f"{bundle.name}: {len(judge.labels)} test images, {bundle.threat}")
    for column in (
        "method",
        "calibration",
        "clean",
        "robust",
        "error",
        "error, attacked",
        "agreement, attacked",
    ):
        table.add_column(column, justify="left" if column in ("method", "calibration") else "right")
    add(table, "float32", "", judge.judge(judge.source))
    drawn = {
        kind: [calibration_images(_Seeded(bundle, seed), network, Calibration(kind))[0] for seed in SEEDS]
        for kind in KINDS
    }
    cases: list[tuple[str, str, str, tuple[str, ...]]] = [
        (method, method, kind, PRODUCTS) for method in METHODS for kind in KINDS
    ]
    cases.append(("Percentile, more operators", "Percentile", "clean", (*PRODUCTS, *MORE)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.int8.onnx"
        for title, method, kind, operators in cases:
            found = []
            for pixels in drawn[kind]:
                onnx.save(quantise(model, pixels, method=method, operators=operators), file)
                run = OnnxRuntimeClassifier(file, kernel=False)
                found.append(judge.judge([run(images) for images in judge.images]))
            add(table, title, kind, np.mean(found, 0).tolist())
    Console(width=110).print(table)


class _Seeded(Bundle):
    """A bundle whose recipe draws other images."""

    def __init__(self, bundle: Bundle, seed: int) -> None:
        super().__init__(bundle.path, bundle.manifest)
        self._seed = seed

    def recipe(self) -> Any:
        recipe = super().recipe()
        return replace(recipe, train=replace(recipe.train, seed=self._seed))


def attacked(bundle: Bundle, network: nn.Module) -> Judge:
    recipe, threat = bundle.recipe(), bundle.threat
    split = load_dataset(
        recipe.data.name, "test", recipe.model.image_size, recipe.model.in_chans, recipe.data.dir
    )
    pixels, labels = split.batch(range(len(split)))
    images = [pixels] + [
        pgd(
            network, pixels, labels, threat, steps=STEPS, step_size=STEP_SIZE * threat.eps,
            generator=Generator().manual_seed(seed),
        )
        for seed in range(RUNS)
    ]  # fmt: skip
    arrays = [batch.numpy() for batch in images]
    classifier = PyTorchClassifier(network)
    return Judge(arrays, labels.numpy(), [classifier(batch) for batch in arrays])


def add(table: Table, method: str, kind: str, found: list[float]) -> None:
    clean, robust, error, under_attack, agreement = found
    table.add_row(
        method,
        kind,
        f"{clean:.1%}",
        f"{robust:.1%}",
        f"{error:.3f}",
        f"{under_attack:.3f}",
        f"{agreement:.1%}",
    )


if __name__ == "__main__":
    main(*sys.argv[1:] or ["exported/demo"])
