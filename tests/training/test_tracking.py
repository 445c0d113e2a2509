"""Trackers: what they are told, by accelerate's interface, and what a missing one says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robust_export.errors import TrainingError
from robust_export.training.distributed import Processes
from robust_export.training.run import train
from robust_export.training.tracking import Tracking
from tests.conftest import tiny_recipe

CPU = torch.device("cpu")


def test_tensorboard_is_told_every_epoch(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    bundle = train(tiny_recipe(train={"tracker": "tensorboard", "epochs": 2}), tmp_path / "run", device="cpu")
    (folder,) = (tmp_path / "run" / "tracking").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {
        "train/loss", "train/learning_rate", "val/clean_accuracy", "val/robust_accuracy", "seconds"
    } <= set(events.Tags()["scalars"])  # fmt: skip
    robust = events.Scalars("val/robust_accuracy")
    assert [entry.step for entry in robust] == [1, 2]
    best = bundle.manifest["provenance"]["best_epoch"]
    expected = bundle.manifest["provenance"]["val"]["robust_accuracy"]
    assert robust[best - 1].value == pytest.approx(expected)


def test_weights_and_biases_is_asked_by_its_own_interface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    run = SimpleNamespace(log=lambda values, step, **_: told.append((step, values)), finish=lambda: None)
    config = SimpleNamespace(update=lambda values, **_: told.append(values))

    def init(project: str, **_: Any) -> Any:
        told.append(project)
        return run

    module = SimpleNamespace(init=init, config=config)
    monkeypatch.setitem(sys.modules, "wandb", module)
    train(tiny_recipe(train={"tracker": "wandb", "epochs": 1}), tmp_path / "run", device="cpu")
    assert told[0] == "resnet10t_sparta"
    assert told[1]["train.epochs"] == 1
    assert told[2][0] == 1
    assert told[2][1]["train/loss"] > 0


def test_a_tracker_that_is_not_installed_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrainingError, match=r"'mlflow'.*pip install.*mlflow"):
        Tracking(tiny_recipe(train={"tracker": "mlflow"}), tmp_path, Processes(CPU))


def test_no_tracker_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert Tracking(tiny_recipe(), tmp_path, Processes(CPU)).tracker is None
