"""The stages of the demo: train on digits, export, verify, and train without attacks for comparison."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_export.attacks.autoattack import autoattack
from robust_export.bundle import EXPORTED, Bundle
from robust_export.data.datasets import load_dataset
from robust_export.export.bundle_onnx import export_bundle
from robust_export.nn.load import load
from robust_export.recipe.recipe_file import default_recipe, parse
from robust_export.recipe.schema import Recipe
from robust_export.training.run import train
from robust_export.training.trainer import OnEpoch
from robust_export.utils.files import replace_folder
from robust_export.verification.report.tables import tables
from robust_export.verification.report.verify_json import to_dict
from robust_export.verification.results import Report
from robust_export.verification.verify import verify

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class DemoResult:
    """The bundle of the demo, its verification, and the accuracies without adversarial training."""

    bundle: Path
    report: Report
    standard_clean: float  # clean accuracy of the same network trained without attacks
    standard_robust: float  # its robust accuracy, under the same attacks
    seconds: dict[str, float]  # wall-clock time of each stage

    def to_dict(self) -> dict[str, Any]:
        return {
            "bundle": str(self.bundle), "report": to_dict(self.report),
            "standard": {
                "clean_accuracy": self.standard_clean, "robust_accuracy": self.standard_robust,
            },
            "seconds": self.seconds,
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """Return a comparison of training with and without attacks, and the tables of the report."""
        from rich.table import Table

        reference = self.report.reference
        table = Table(title="same network and data, trained with and without attacks", title_justify="left")
        table.add_column("training")
        table.add_column("clean accuracy", justify="right")
        table.add_column("robust accuracy", justify="right")
        table.add_row("adversarial", f"{reference.clean.value:.1%}", f"{reference.robust.value:.1%}")
        table.add_row("without attacks", f"{self.standard_clean:.1%}", f"{self.standard_robust:.1%}")
        return [table, *tables(self.report)]


def run_demo(
    home: str | Path = EXPORTED,
    *,
    say: Callable[[str], None] = lambda line: None,
    on_epoch: OnEpoch = lambda epoch, epochs: None,
) -> DemoResult:
    """Train, export and verify on digits, and move the bundle to `home`/demo at the end.

    Leftovers of an interrupted demo are deleted first. An existing `home`/demo is replaced at the end.
    """
    recipe = parse(default_recipe("demo"), "demo recipe")
    target, folder, standard = (Path(home) / name for name in ("demo", ".demo.new", ".demo.standard"))
    for leftover in (folder, standard):
        shutil.rmtree(leftover, ignore_errors=True)
    seconds: dict[str, float] = {}
    stages = _StageTimer(seconds, say)

    stages.start("train", f"1/4 adversarial training of {recipe.model.name} on {recipe.data.name}")
    train(recipe, folder, device="cpu", on_epoch=on_epoch, name="demo")
    stages.start("export", "2/4 export to ONNX with ai.sparta::Sparta nodes")
    export_bundle(Bundle.open(folder))
    stages.start("verify", "3/4 verification of model.onnx on the whole test split")
    report = verify(Bundle.open(folder), device="cpu", command="robust-export demo", say=say)
    stages.start("standard", "4/4 training without attacks, for comparison")
    clean, robust = _train_without_attacks(recipe, standard, on_epoch)
    stages.stop()
    shutil.rmtree(standard)
    replace_folder(folder, target)
    return DemoResult(target, report, clean, robust, seconds)


def _train_without_attacks(recipe: Recipe, folder: Path, on_epoch: OnEpoch) -> tuple[float, float]:
    """Train without attacks; return (clean, robust) accuracy on the test split."""
    standard = replace(recipe, attack=replace(recipe.attack, steps=0))
    network = load(train(standard, folder, device="cpu", on_epoch=on_epoch))
    images = load_dataset(recipe.data.name, "test", recipe.model.image_size, recipe.model.in_chans)
    pixels, labels = images.batch(range(len(images)))
    broken_by = autoattack(network, pixels, labels, recipe.threat, recipe.verify).broken_by
    misclassified = broken_by.count("clean")
    broken = len([name for name in broken_by if name])
    return 1 - misclassified / len(images), 1 - broken / len(images)


class _StageTimer:
    """Prints the start of each stage, and records how long each takes."""

    def __init__(self, seconds: dict[str, float], say: Callable[[str], None]) -> None:
        self.seconds, self.say = seconds, say
        self.name = ""

    def start(self, name: str, line: str) -> None:
        self.stop()
        self.name, self.started = name, time.monotonic()
        self.say(line)

    def stop(self) -> None:
        if self.name:
            self.seconds[self.name] = round(time.monotonic() - self.started, 1)
