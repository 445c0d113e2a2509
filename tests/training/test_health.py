"""Runs that end early: non-finite losses and weights, dead loader workers, catastrophic overfitting."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robust_export.data.datasets import Images
from robust_export.errors import TrainingError
from robust_export.training.health import RobustAccuracies, catastrophic_overfitting, explain
from robust_export.training.progress import restore_rng, rng_state
from robust_export.training.run import train
from robust_export.training.step import TrainStep
from robust_export.training.validate import Validator
from tests.conftest import tiny_recipe
from tests.training.trainers import CPU, make_trainer, quick_recipe, weights


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([], False),
        ([(0.5, 0.0)], False),  # no earlier epoch to compare with
        ([(0.5, 0.4), (0.9, 0.02)], True),
        ([(0.5, 0.4), (0.6, 0.45), (0.9, 0.2)], True),  # below half of the best, not of the last
        ([(0.5, 0.4), (0.6, 0.21)], False),
        ([(0.5, 0.4), (0.1, 0.1)], False),  # both are low: no overfitting to the single step
        ([(0.13, 0.12), (0.12, 0.04)], False),  # at chance level
        ([(0.5, 0.4), (0.9, 0.02), (0.6, 0.4)], False),  # only the last epoch counts
    ],
)
def test_catastrophic_overfitting(accuracies: list[tuple[float, float]], expected: bool) -> None:
    assert catastrophic_overfitting([RobustAccuracies(*pair) for pair in accuracies]) is expected


def test_overfitting_stops_with_the_best_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = iter([
        RobustAccuracies(0.5, 0.4), RobustAccuracies(0.5, 0.45), RobustAccuracies(0.95, 0.01),
        RobustAccuracies(1.0, 0.0),
    ])  # fmt: skip
    scores = iter([(0.5, 0.3), (0.6, 0.4), (0.9, 0.1), (0.9, 0.9)])
    monkeypatch.setattr(Validator, "robust_accuracies", lambda _: next(checks))
    monkeypatch.setattr(Validator, "accuracy", lambda *_, **__: next(scores))
    sections: dict[str, Any] = {
        "train": {"method": "fast", "epochs": 6}, "data": {"val_fraction": 0.9}
    }  # fmt: skip
    bundle = train(tiny_recipe(**sections), tmp_path / "fast", device="cpu")
    facts = bundle.manifest["provenance"]
    assert (facts["epochs"], facts["best_epoch"]) == (3, 2)
    message = "catastrophic overfitting in epoch 3: accuracy under PGD fell from 45.0% to 1.0%"
    assert facts["stopped"].startswith(message)
    resumed = make_trainer(bundle.path, **sections)
    resumed.start()
    assert resumed.stopped == facts["stopped"]
    resumed.fit(lambda *_: pytest.fail("trained on"))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_loss_names_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    steps = iter(range(1, 10**6))
    monkeypatch.setattr(TrainStep, "__call__", lambda *_: torch.tensor(bad if next(steps) >= 18 else 1.0))
    with pytest.raises(TrainingError, match=rf"{bad} in epoch 2, step 7 of 11.*epoch 2, step 4 is intact"):
        train(tiny_recipe(train={"checkpoint_every": 4}), tmp_path / "nan", device="cpu")
    last = json.loads((tmp_path / "nan/checkpoints/last.json").read_text())
    assert (last["epoch"], last["position"]["step"]) == (1, 4)


def test_non_finite_weights_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step before a checkpoint makes a weight nan, although its own loss is finite."""
    original, steps = TrainStep.__call__, iter(range(1, 10**6))

    def step(self: TrainStep, *args: Any) -> Tensor:
        loss = original(self, *args)
        if next(steps) == 4:
            next(self.model.parameters()).data.fill_(math.nan)
        return loss

    monkeypatch.setattr(TrainStep, "__call__", step)
    with pytest.raises(TrainingError, match=r"weight became nan.*epoch 1, step 4.*epoch 0 is intact"):
        train(tiny_recipe(train={"checkpoint_every": 4}), tmp_path / "nan", device="cpu")
    last = json.loads((tmp_path / "nan/checkpoints/last.json").read_text())
    assert (last["epoch"], last["position"]["step"]) == (0, 0)


def test_dead_loader_worker_ends_the_run(
    images: Path, quick_weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Images.batch

    def batch(self: Images, indices: Any) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(Images, "batch", batch)
        with pytest.raises(TrainingError, match=r"decodes images died.*checkpoint is intact.*data\.workers"):
            train(quick_recipe(images, data={"workers": 1}), tmp_path / "run", device="cpu")
    train(quick_recipe(images), tmp_path / "run", device="cpu", resume=True)
    assert weights(tmp_path / "run") == quick_weights


def test_other_errors_of_torch_stay_as_they_are() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert explain(error) is error


def test_rng_states_of_a_cpu_restore_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint written on a CPU has no state of a GPU's generator."""
    generator = torch.Generator().manual_seed(3)
    states = rng_state(generator, CPU)
    monkeypatch.setattr(torch.cuda, "set_rng_state", None)
    other = torch.Generator()
    restore_rng(states, other, torch.device("cuda"))
    assert torch.equal(other.get_state(), generator.get_state())
