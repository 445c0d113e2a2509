"""A training run: its bundle, best epoch, patience, schedule and settings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from robust_export.bundle import Bundle
from robust_export.data.datasets import load_dataset
from robust_export.errors import InvalidValue, TrainingError, UnknownName
from robust_export.nn.load import load
from robust_export.nn.models import create_model
from robust_export.nn.sparta import sparta_modules
from robust_export.nn.sparta_file import load_sparta
from robust_export.nn.state_dict import tensors
from robust_export.recipe.recipe_file import load_recipe, parse
from robust_export.training import step
from robust_export.training.awp import perturbed_weights
from robust_export.training.progress import Epoch
from robust_export.training.run import train
from robust_export.training.step import TrainStep
from robust_export.training.validate import Validator
from tests.conftest import tiny_recipe
from tests.training.trainers import STEPS_PER_EPOCH, make_trainer, quick_recipe, weights

FEW_IMAGES = {"val_fraction": 0.9}  # of the digits, for tests that script validation


def test_bundle_contains_the_trained_network(trained: Path) -> None:
    bundle = Bundle.open(trained)
    network = load(bundle)
    assert not network.training
    history = json.loads((trained / "history.json").read_text())
    assert len(history) == 3
    images = load_dataset("digits", "val", 8)
    pixels, labels = images.batch(range(len(images)))
    with torch.no_grad():
        accuracy = (network(pixels).argmax(1) == labels).double().mean().item()
    best = bundle.manifest["provenance"]["val"]
    assert accuracy == pytest.approx(best["clean_accuracy"])
    assert accuracy > 0.2  # chance is 0.1
    assert bundle.labels == [str(i) for i in range(10)]
    assert bundle.manifest["provenance"]["data"]["sha256"] == images.digest
    assert bundle.threat.eps == 0.1
    assert {"recipe.toml", "weights.safetensors", "sparta.safetensors"} <= set(bundle.manifest["files"])


def test_sparta_file_contains_the_learnt_gates(trained: Path) -> None:
    gates = sparta_modules(load(trained))
    assert all(gate.weight.abs().max() > 1e-3 for gate in gates.values())
    other = create_model("resnet10t_sparta", image_size=8, channels=[8, 8, 16, 16], stem_width=8)
    load_sparta(other, trained / "sparta.safetensors")
    for name, gate in sparta_modules(other).items():
        assert torch.equal(gate.weight, gates[name].weight)
        assert torch.equal(gate.bias, gates[name].bias)


def test_recipe_of_a_bundle_trains_the_same_weights(trained: Path, tmp_path: Path) -> None:
    recipe = parse(load_recipe(trained / "recipe.toml"))
    assert weights(train(recipe, tmp_path / "again", device="cpu").path) == weights(trained)


def test_another_seed_trains_other_weights(images: Path, quick_weights: bytes, tmp_path: Path) -> None:
    other = train(quick_recipe(images, train={"seed": 1}), tmp_path / "other", device="cpu")
    assert weights(other.path) != quick_weights


def script_validation(monkeypatch: pytest.MonkeyPatch, scores: list[tuple[float, float]]) -> None:
    """Let validation return these (clean, robust) accuracies, one per epoch."""
    left = iter(scores)
    monkeypatch.setattr(Validator, "accuracy", lambda *_, **__: next(left))


@pytest.mark.parametrize(
    ("attack_steps", "scores", "best"),
    [
        (1, [(0.9, 0.1), (0.5, 0.6), (0.9, 0.5)], 2),  # the highest robust accuracy
        (1, [(0.5, 0.6), (0.7, 0.6), (0.6, 0.6)], 2),  # clean accuracy breaks ties
        (1, [(0.5, 0.6), (0.5, 0.6), (0.5, 0.6)], 1),  # the first of equal ones
        (0, [(0.5, 0.3), (0.9, 0.0), (0.7, 0.1)], 2),  # the highest clean accuracy in standard training
    ],
)
def test_bundle_has_the_weights_of_the_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack_steps: int, scores: list[Any], best: int
) -> None:
    script_validation(monkeypatch, scores)
    trainer = make_trainer(tmp_path, attack={"steps": attack_steps}, data=FEW_IMAGES)
    trainer.start()
    by_epoch: dict[int, dict[str, Tensor]] = {}
    trainer.fit(
        lambda epoch, _: by_epoch.update(
            {epoch.epoch: {k: v.detach().clone() for k, v in tensors(trainer.step.ema.module).items()}}
        )
    )
    bundle = trainer.write_bundle("best")
    assert bundle.manifest["provenance"]["best_epoch"] == best
    saved = load_file(tmp_path / "weights.safetensors")

    def equal(epoch: int) -> bool:
        assert saved.keys() == by_epoch[epoch].keys()
        return all(torch.equal(saved[name], tensor) for name, tensor in by_epoch[epoch].items())

    assert [epoch for epoch in by_epoch if equal(epoch)] == [best]


def test_patience_ends_a_run_without_improvement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [(0.5, 0.5), (0.5, 0.6), (0.5, 0.6), (0.5, 0.1)])
    trainer = make_trainer(tmp_path, train={"epochs": 10, "patience": 2}, data=FEW_IMAGES)
    trainer.start()
    epochs: list[Epoch] = []
    trainer.fit(lambda epoch, _: epochs.append(epoch))
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    assert trainer.best_epoch == 2


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "steps"])
def test_schedule_spans_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str) -> None:
    """One-cycle has its peak at 1/4 of 22 steps, between two steps; steps falls at 1/2 and 3/4."""
    script_validation(monkeypatch, [(0.5, 0.5)] * 2)
    trainer = make_trainer(tmp_path, train={"epochs": 2, "schedule": schedule}, attack={"steps": 0})
    trainer.start()
    found: list[float] = []
    trainer.fit(lambda *_: None, lambda *_: found.append(trainer.step.learning_rate))
    progress = [i / (2 * STEPS_PER_EPOCH) for i in range(2 * STEPS_PER_EPOCH)]
    expected = {
        "one-cycle": [0.1 * min(p / 0.25, (1 - p) / 0.75) for p in progress],
        "cosine": [0.05 * (1 + math.cos(math.pi * p)) for p in progress],
        "steps": [0.1 if p < 0.5 else 0.01 if p < 0.75 else 0.001 for p in progress],
    }
    assert found == pytest.approx(expected[schedule])


def test_nan_loss_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter(range(10**6))
    monkeypatch.setattr(TrainStep, "__call__", lambda *_: torch.tensor(math.nan if next(steps) > 12 else 1.0))
    with pytest.raises(TrainingError, match=r"nan in epoch 2.*checkpoint of epoch 1.*train\.lr"):
        train(tiny_recipe(), tmp_path / "nan", device="cpu")
    assert json.loads((tmp_path / "nan/checkpoints/last.json").read_text())["epoch"] == 1


@pytest.mark.parametrize(("share", "kernel_size"), [("width", 3), ("site", 1)])
def test_sparta_settings_shape_the_gates(tmp_path: Path, share: str, kernel_size: int) -> None:
    model = make_trainer(tmp_path, sparta={"share": share, "kernel_size": kernel_size}).step.model
    modules = sparta_modules(model)
    distinct = {id(module.weight) for module in modules.values()}
    widths = {module.weight.shape[0] for module in modules.values()}
    assert len(distinct) == (len(widths) if share == "width" else len(modules))
    assert len(modules) == (len(widths) if share == "width" else 11)
    assert {tuple(module.weight.shape[2:]) for module in modules.values()} == {(kernel_size, kernel_size)}


def test_relu_bundle_has_no_sparta_file(tmp_path: Path) -> None:
    recipe = tiny_recipe(model={"name": "resnet10t_relu"}, train={"epochs": 1}, attack={"steps": 0})
    bundle = train(recipe, tmp_path / "run", device="cpu")
    assert not sparta_modules(load(bundle))
    assert set(bundle.manifest["files"]) == {"recipe.toml", "weights.safetensors", "history.json"}


def test_awp_starts_after_its_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []

    def spy(*args: Any) -> Any:
        epochs.append(len(trainer.history))
        return perturbed_weights(*args)

    monkeypatch.setattr(step, "perturbed_weights", spy)
    script_validation(monkeypatch, [(0.5, 0.5)] * 3)
    trainer = make_trainer(tmp_path, train={"awp": 0.01, "awp_start": 2, "epochs": 3}, attack={"steps": 0})
    trainer.start()
    trainer.fit(lambda *_: None)
    assert epochs == [2] * STEPS_PER_EPOCH


@pytest.mark.parametrize(
    ("name", "kind"),
    [("cuda:99", InvalidValue), ("tpu", UnknownName), ("meta", UnknownName), ("cpu,gpu", UnknownName)],
)
def test_unknown_device_is_refused(tmp_path: Path, name: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="device"):
        train(tiny_recipe(), tmp_path / "run", device=name)
    assert not (tmp_path / "run").exists()
