"""What stops a run: numbers that are none, processes that die, robustness that collapses."""

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

from robust_export.bundle import Bundle
from robust_export.data import datasets
from robust_export.data.datasets import Images
from robust_export.errors import TrainingError
from robust_export.training.health import Watched, collapsed
from robust_export.training.progress import restore_rng, rng_state
from robust_export.training.run import train
from robust_export.training.trainer import Run
from tests.conftest import tiny_recipe


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([], False),
        ([(0.5, 0.0)], False),  # nothing to compare with
        ([(0.5, 0.4), (0.9, 0.02)], True),
        ([(0.5, 0.4), (0.6, 0.45), (0.9, 0.2)], True),  # below half of the best, not of the last
        ([(0.5, 0.4), (0.6, 0.21)], False),
        ([(0.5, 0.4), (0.1, 0.1)], False),  # it got worse altogether: no overfitting to one step
        ([(0.13, 0.12), (0.12, 0.04)], False),  # at chance level
        ([(0.5, 0.4), (0.9, 0.02), (0.6, 0.4)], False),  # only the last epoch counts
    ],
)
def test_catastrophic_overfitting_is_told(accuracies: list[tuple[float, float]], expected: bool) -> None:
    assert collapsed([Watched(*pair) for pair in accuracies]) is expected


def test_a_collapse_stops_with_the_last_good_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = iter([Watched(0.5, 0.4), Watched(0.5, 0.45), Watched(0.95, 0.01), Watched(1.0, 0.0)])
    scores = iter([(0.5, 0.3), (0.6, 0.4), (0.9, 0.1), (0.9, 0.9)])
    monkeypatch.setattr(Run, "_watch", lambda _: next(watched))
    monkeypatch.setattr(Run, "validate", lambda *_: next(scores))
    bundle = train(tiny_recipe(train={"method": "fast", "epochs": 6}), tmp_path / "fast", device="cpu")
    facts = bundle.manifest["provenance"]
    assert (facts["epochs"], facts["best_epoch"]) == (3, 2)
    words = "catastrophic overfitting in epoch 3: accuracy under PGD fell from 45.0% to 1.0%"
    assert facts["stopped"].startswith(words)
    resumed = Run(bundle.recipe(), bundle.path, torch.device("cpu"))
    resumed.start()
    assert resumed.stopped == facts["stopped"]  # it would not go on after an interruption either


def test_the_guard_watches_the_network_itself(tmp_path: Path) -> None:
    """It answers "3" whatever it sees, and so withstands all on the threes; its average answers "5"."""
    job = Run(tiny_recipe(train={"method": "fast"}), tmp_path, torch.device("cpu"))
    threes = (job.val_images.labels == 3).double().mean().item()
    for network in (job.model, job.ema.module):
        classifier = network.get_submodule("backbone.fc")
        assert isinstance(classifier, torch.nn.Linear)
        with torch.no_grad():
            classifier.weight.zero_()
            classifier.bias.copy_(torch.eye(10)[3 if network is job.model else 5])
    assert job._watch() == Watched(pytest.approx(threes), pytest.approx(threes))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    steps = iter(range(1, 10**6))
    monkeypatch.setattr(Run, "_step", lambda *_: torch.tensor(bad if next(steps) >= 18 else 1.0))
    with pytest.raises(TrainingError, match=rf"{bad} in epoch 2, step 7 of 11.*epoch 2, step 4 is whole"):
        train(tiny_recipe(train={"checkpoint_every": 4}), tmp_path / "nan", device="cpu")
    last = json.loads((tmp_path / "nan/checkpoints/last.json").read_text())
    assert (last["epoch"], last["position"]["step"]) == (1, 4)


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step before a checkpoint can spoil them while its own loss was fine."""
    original, steps = Run._step, iter(range(1, 10**6))

    def spoil(self: Run, *args: Any) -> Tensor:
        loss = original(self, *args)
        if next(steps) == 4:
            next(self.model.parameters()).data.fill_(math.nan)
        return loss

    monkeypatch.setattr(Run, "_step", spoil)
    with pytest.raises(TrainingError, match=r"weight became nan or inf in epoch 1, step 4.*epoch 0 is whole"):
        train(tiny_recipe(train={"checkpoint_every": 4}), tmp_path / "nan", device="cpu")


def test_a_worker_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Images.batch

    def die(self: Images, indices: Any) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, indices)

    monkeypatch.setattr(datasets.Images, "batch", die)
    with pytest.raises(TrainingError, match=r"decodes images died.*checkpoint is whole.*data\.workers"):
        train(tiny_recipe(data={"workers": 1}), tmp_path / "run", device="cpu")
    monkeypatch.undo()
    bundle = train(tiny_recipe(data={"workers": 0}), tmp_path / "run", device="cpu", resume=True)
    assert Bundle.open(bundle.path)


def test_a_state_of_another_device_goes_on_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a CPU has no state of a GPU's generator."""
    generator = torch.Generator().manual_seed(3)
    states = rng_state(generator, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "set_rng_state", None)
    other = torch.Generator()
    restore_rng(states, other, torch.device("cuda"))
    assert torch.equal(other.get_state(), generator.get_state())
