"""Compare the accuracy of int8 files by calibration images and calibration method.

Robust accuracy is measured on transferred examples: three runs of PGD with 20 steps on the reference model.
Each row is the mean over four draws of the calibration images.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
from rich.console import Console
from rich.table import Table
from torch import Generator, nn

from robust_export.attacks.pgd import pgd
from robust_export.bundle import Bundle
from robust_export.data.datasets import load_dataset
from robust_export.export.calibration import CALIBRATION_IMAGES, Calibration, calibration_images
from robust_export.export.exporter import to_onnx
from robust_export.export.quantize import quantize
from robust_export.nn.load import load
from robust_export.runtimes.onnx_model import MATRIX_PRODUCTS
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.pytorch import PyTorchClassifier

MORE_OPERATORS = ("Add", "AveragePool")  # ONNX Runtime's default quantises them too
METHODS = ("MinMax", "Entropy", "Percentile")
STEPS, STEP_SIZE, RUNS = 20, 0.125, 3  # of PGD; the step size in units of eps
SEEDS = range(4)

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Images:
    """Clean and adversarial images, with the reference model's logits.

    Attributes:
        images: clean, then one array per run of PGD.
        labels: [N].
        logits: the reference model's, one array per array of `images`.
    """

    images: list[Array]
    labels: npt.NDArray[np.int64]
    logits: list[Array]

    def measure(self, logits: list[Array]) -> list[float]:
        """Return clean and robust accuracy, the RMS logit error on both, and top-1 agreement under attack."""
        correct = [out.argmax(1) == self.labels for out in logits]
        errors = [float(np.sqrt(((a - b) ** 2).mean())) for a, b in zip(logits, self.logits, strict=True)]
        agree = [(a.argmax(1) == b.argmax(1)).mean() for a, b in zip(logits, self.logits, strict=True)]
        return [
            float(correct[0].mean()), float(np.all(correct, 0).mean()), errors[0],
            float(np.mean(errors[1:])), float(np.mean(agree[1:])),
        ]  # fmt: skip


@click.command()
@click.argument("path", metavar="[BUNDLE]", default="exported/demo")
def main(path: str) -> None:
    """Compare int8 calibrations of BUNDLE (exported/demo by default), which is not changed."""
    bundle = Bundle.open(path)
    recipe, network = bundle.recipe(), load(bundle)
    spec = recipe.model
    images = attack(bundle, network)
    model = to_onnx(network, spec.image_size, spec.in_chans)
    table = Table(title=f"{bundle.name}: {len(images.labels)} test images, {bundle.threat}")
    for column in ("method", "calibration"):
        table.add_column(column)
    for column in ("clean", "robust", "error", "error, attacked", "agreement, attacked"):
        table.add_column(column, justify="right")
    add_row(table, "float32", "", images.measure(images.logits))
    draws = {
        kind: [calibration_images(_Seeded(bundle, seed), network, Calibration(kind))[0] for seed in SEEDS]
        for kind in CALIBRATION_IMAGES
    }
    cases: list[tuple[str, str, str, tuple[str, ...]]] = [
        (method, method, kind, MATRIX_PRODUCTS) for method in METHODS for kind in CALIBRATION_IMAGES
    ]
    cases.append(("Percentile, more operators", "Percentile", "clean", (*MATRIX_PRODUCTS, *MORE_OPERATORS)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.int8.onnx"
        for title, method, kind, operators in cases:
            rows = []
            for pixels in draws[kind]:
                onnx.save(quantize(model, pixels, method=method, operators=operators), file)
                classifier = OnnxRuntimeClassifier(file, kernel=False)
                rows.append(images.measure([classifier(batch) for batch in images.images]))
            add_row(table, title, kind, np.mean(rows, 0).tolist())
    Console(width=110).print(table)


class _Seeded(Bundle):
    """A bundle whose recipe has another seed, which draws other calibration images."""

    def __init__(self, bundle: Bundle, seed: int) -> None:
        super().__init__(bundle.path, bundle.manifest)
        self._seed = seed

    def recipe(self) -> Any:
        recipe = super().recipe()
        return replace(recipe, train=replace(recipe.train, seed=self._seed))


def attack(bundle: Bundle, network: nn.Module) -> Images:
    """Return the test images, clean and attacked by each run of PGD, with the reference model's logits."""
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
    return Images(arrays, labels.numpy(), [classifier(batch) for batch in arrays])


def add_row(table: Table, method: str, kind: str, figures: list[float]) -> None:
    clean, robust, error, attacked_error, agreement = figures
    table.add_row(
        method, kind, f"{clean:.1%}", f"{robust:.1%}", f"{error:.3f}", f"{attacked_error:.3f}",
        f"{agreement:.1%}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
