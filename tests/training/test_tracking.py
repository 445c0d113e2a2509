"""Trackers: what is logged through accelerate's interface, and the error if one is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from robust_export.errors import TrainingError
from robust_export.training.distributed import Processes
from robust_export.training.run import train
from robust_export.training.tracking import Tracking
from tests.conftest import tiny_recipe
from tests.training.trainers import CPU, quick_recipe


def test_tensorboard_logs_every_epoch(images: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = quick_recipe(images, train={"tracker": "tensorboard", "warmup": 0.0})
    bundle = train(recipe, tmp_path / "run", device="cpu")
    (folder,) = (tmp_path / "run" / "tracking").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {
        "train/loss", "train/learning_rate", "val/clean_accuracy", "val/robust_accuracy", "seconds"
    } <= set(events.Tags()["scalars"])  # fmt: skip
    robust = events.Scalars("val/robust_accuracy")
    assert [entry.step for entry in robust] == [1, 2]
    rates = [entry.value for entry in events.Scalars("train/learning_rate")]
    assert rates == pytest.approx([0.1 * (1 - step / 10) for step in (4, 9)])  # of each epoch's last step
    best = bundle.manifest["provenance"]["best_epoch"]
    expected = bundle.manifest["provenance"]["val"]["robust_accuracy"]
    assert robust[best - 1].value == pytest.approx(expected)


def test_wandb_gets_project_recipe_and_epochs(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[Any] = []
    run = SimpleNamespace(log=lambda values, step, **_: logged.append((step, values)), finish=lambda: None)
    config = SimpleNamespace(update=lambda values, **_: logged.append(values))

    def init(project: str, **_: Any) -> Any:
        logged.append(project)
        return run

    module = SimpleNamespace(init=init, config=config)
    monkeypatch.setitem(sys.modules, "wandb", module)
    train(quick_recipe(images, train={"tracker": "wandb"}), tmp_path / "run", device="cpu")
    assert logged[0] == "resnet10t_sparta"
    assert logged[1]["train.epochs"] == 2
    assert logged[2][0] == 1
    assert logged[2][1]["train/loss"] > 0


def test_missing_tracker_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrainingError, match=r"'mlflow'.*pip install.*mlflow"):
        Tracking(tiny_recipe(train={"tracker": "mlflow"}), tmp_path, Processes(CPU))


def test_default_is_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert Tracking(tiny_recipe(), tmp_path, Processes(CPU)).tracker is None
