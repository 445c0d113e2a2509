"""The whole pipeline on real data in minutes: train, export, verify, and the same without attacks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from robust_export.attacks.autoattack import autoattack
from robust_export.bundle import HOME, Bundle
from robust_export.data.datasets import load_dataset
from robust_export.export.bundle_onnx import export_bundle
from robust_export.nn.models import load
from robust_export.recipe.recipe_file import default_recipe, parse
from robust_export.recipe.schema import Recipe
from robust_export.training.run import train
from robust_export.training.trainer import OnEpoch
from robust_export.utils.files import replace_folder
from robust_export.verification.report.tables import tables
from robust_export.verification.results import Report
from robust_export.verification.verify import verify


@dataclass(frozen=True)
class Demo:
    """What the demo measured."""

    bundle: Path
    report: Report
    standard_clean: float  # accuracy of the same network trained without attacks
    standard_robust: float  # and under the same attacks
    seconds: dict[str, float]  # of each stage

    def to_dict(self) -> dict[str, Any]:
        return {
            "bundle": str(self.bundle), "report": self.report.to_dict(),
            "standard": {
                "clean_accuracy": self.standard_clean, "robust_accuracy": self.standard_robust,
            },
            "seconds": self.seconds,
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """Return the report's tables, and one that sets adversarial training against none."""
        source = self.report.source
        table = Table(title="the same network and data, with and without attacks", title_justify="left")
        table.add_column("training")
        table.add_column("clean accuracy", justify="right")
        table.add_column("robust accuracy", justify="right")
        table.add_row("adversarial", f"{source.clean.value:.1%}", f"{source.robust.value:.1%}")
        table.add_row("without attacks", f"{self.standard_clean:.1%}", f"{self.standard_robust:.1%}")
        return [table, *tables(self.report)]


def run_demo(
    home: str | Path = HOME,
    *,
    say: Callable[[str], None] = lambda line: None,
    on_epoch: OnEpoch = lambda epoch, epochs: None,
) -> Demo:
    """Train, export and verify on digits, and put the bundle in `home`/demo at the end.

    It starts afresh whatever was there; an older demo stays until the new one is finished.
    """
    recipe = parse(default_recipe("demo"), "demo recipe")
    target, folder, twin = Path(home) / "demo", Path(home) / ".demo.new", Path(home) / ".demo.twin"
    for leftover in (folder, twin):
        shutil.rmtree(leftover, ignore_errors=True)
    seconds: dict[str, float] = {}
    clock = _Stages(seconds, say)

    clock.start("train", f"1/4 adversarial training of {recipe.model.name} on {recipe.data.name}")
    train(recipe, folder, device="cpu", on_epoch=on_epoch, name="demo")
    clock.start("export", "2/4 export to ONNX with ai.sparta::Sparta nodes")
    export_bundle(Bundle.open(folder))
    clock.start("verify", "3/4 verification of model.onnx: AutoAttack and parity on the whole test split")
    report = verify(Bundle.open(folder), device="cpu", command="robust-export demo", say=say)
    clock.start("standard", "4/4 the same network without attacks, for comparison")
    clean, robust = _standard(recipe, twin, on_epoch)
    clock.stop()
    shutil.rmtree(twin)
    replace_folder(folder, target)
    return Demo(target, report, clean, robust, seconds)


def _standard(recipe: Recipe, folder: Path, on_epoch: OnEpoch) -> tuple[float, float]:
    """Train without attacks; return (clean, robust) accuracy on the test split."""
    plain = replace(recipe, attack=replace(recipe.attack, steps=0))
    network = load(train(plain, folder, device="cpu", on_epoch=on_epoch))
    images = load_dataset(recipe.data.name, "test", recipe.model.image_size, recipe.model.in_chans)
    pixels, labels = images.batch(range(len(images)))
    found = autoattack(network, pixels, labels, recipe.threat, recipe.verify)
    broken = len([name for name in found.broken_by if name])
    misread = found.broken_by.count("clean")
    return 1 - misread / len(images), 1 - broken / len(images)


class _Stages:
    """Says when a stage starts, and keeps how long each took."""

    def __init__(self, seconds: dict[str, float], say: Callable[[str], None]) -> None:
        self.seconds, self.say = seconds, say
        self.name = ""

    def start(self, name: str, line: str) -> None:
        self.stop()
        self.name, self.since = name, time.monotonic()
        self.say(line)

    def stop(self) -> None:
        if self.name:
            self.seconds[self.name] = round(time.monotonic() - self.since, 1)
