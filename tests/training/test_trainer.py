"""Adversarial training: what it optimises, what it keeps, and how it is interrupted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robust_export.attacks.pgd import pgd
from robust_export.bundle import Bundle
from robust_export.data.datasets import load_dataset
from robust_export.errors import InvalidValue, TrainingError, UnknownName
from robust_export.nn.load import load
from robust_export.nn.models import create_model
from robust_export.nn.sparta import sparta_modules
from robust_export.nn.sparta_file import load_sparta
from robust_export.recipe.recipe_file import load_recipe, parse
from robust_export.training import methods
from robust_export.training import step as learner
from robust_export.training.awp import perturbed
from robust_export.training.progress import Epoch
from robust_export.training.run import train
from robust_export.training.trainer import Run
from tests.conftest import tiny_recipe
from tests.data import write_folder

CPU = torch.device("cpu")


def run(tmp_path: Path, **sections: dict[str, Any]) -> Run:
    return Run(tiny_recipe(**sections), tmp_path, CPU)


def test_the_bundle_holds_what_was_trained(trained: Path) -> None:
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


def test_sparta_learns_and_its_file_holds_what_the_network_has(trained: Path) -> None:
    network = load(trained)
    gates = sparta_modules(network)
    assert all(gate.weight.abs().max() > 1e-3 for gate in gates.values())
    other = create_model("resnet10t_sparta", image_size=8, channels=[8, 8, 16, 16], stem_width=8)
    load_sparta(other, trained / "sparta.safetensors")
    for name, gate in sparta_modules(other).items():
        assert torch.equal(gate.weight, gates[name].weight)


def test_training_again_from_the_bundles_recipe_gives_the_same_weights(trained: Path, tmp_path: Path) -> None:
    recipe = parse(load_recipe(trained / "recipe.toml"))
    again = train(recipe, tmp_path / "again", device="cpu")
    assert again.file("weights.safetensors").read_bytes() == (trained / "weights.safetensors").read_bytes()


def test_another_seed_gives_other_weights(trained: Path, tmp_path: Path) -> None:
    other = train(tiny_recipe(train={"seed": 1}), tmp_path / "other", device="cpu")
    assert other.file("weights.safetensors").read_bytes() != (trained / "weights.safetensors").read_bytes()


def test_the_attack_sees_batch_norm_in_eval_mode_and_the_loss_in_train_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    original = pgd

    def spy(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(("attack", model.training))
        return original(model, *args, **kwargs)

    monkeypatch.setattr(methods, "pgd", spy)
    job = run(tmp_path)
    job.optimizer.register_step_pre_hook(lambda *_: seen.append(("step", job.model.training)))
    pixels, labels = job.train_images.batch(range(8))
    job._step(pixels, labels, torch.Generator().manual_seed(0))
    assert seen == [("attack", False), ("step", True)]


def test_the_loss_is_of_the_attacked_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels_seen: list[Tensor] = []
    monkeypatch.setattr(methods, "pgd", lambda model, pixels, *_, **__: torch.ones_like(pixels))
    job = run(tmp_path)
    job.model.register_forward_pre_hook(lambda _, args: pixels_seen.append(args[0]))
    pixels, labels = job.train_images.batch(range(8))
    job._step(pixels, labels, torch.Generator().manual_seed(0))
    assert len(pixels_seen) == 1
    assert (pixels_seen[0] == 1).all()


def test_no_steps_train_without_attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("attacked")

    monkeypatch.setattr(methods, "pgd", refuse)
    job = run(tmp_path, attack={"steps": 0})
    pixels, labels = job.train_images.batch(range(8))
    job._step(pixels, labels, torch.Generator().manual_seed(0))


def test_the_average_follows_every_step(tmp_path: Path) -> None:
    """ema[t] = 0.8 ema[t-1] + 0.2 weights[t], from the first step's weights on."""
    job = run(tmp_path)
    pixels, labels = job.train_images.batch(range(16))
    shared = next(iter(sparta_modules(job.model).values())).weight
    name = next(n for n, p in job.model.named_parameters() if p is shared)
    average = dict(job.ema.module.named_parameters())[name]
    expected: Tensor | None = None
    for step in range(3):
        job._step(pixels, labels, torch.Generator().manual_seed(step))
        now = shared.detach().clone()
        expected = now if expected is None else 0.8 * expected + 0.2 * now
    assert expected is not None
    torch.testing.assert_close(average.detach(), expected)


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[tuple[float, float]]) -> None:
    """Let validation return these (clean, robust) accuracies, one after another."""
    left = iter(scores)
    monkeypatch.setattr(Run, "validate", lambda *_: next(left))


@pytest.mark.parametrize(
    ("steps", "scores", "best"),
    [
        (2, [(0.9, 0.1), (0.5, 0.6), (0.9, 0.5)], 2),  # robust accuracy decides
        (2, [(0.5, 0.6), (0.7, 0.6), (0.6, 0.6)], 2),  # clean accuracy breaks ties
        (0, [(0.5, 0.3), (0.9, 0.0), (0.7, 0.1)], 2),  # clean accuracy, where nothing attacks
    ],
)
def test_the_best_epochs_weights_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, scores: list[Any], best: int
) -> None:
    scripted(monkeypatch, scores)
    job = run(tmp_path, attack={"steps": steps})
    job.start()
    at: dict[int, Tensor] = {}
    job.fit(lambda epoch, _: at.update({epoch.epoch: job.ema.module.mean_weight()}))  # type: ignore[operator]
    assert job.best_epoch == best


@pytest.fixture(autouse=True)
def _mean_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fingerprint of a network's weights."""
    fingerprint: Callable[[nn.Module], Tensor] = lambda module: torch.stack(  # noqa: E731
        [p.detach().double().mean() for p in module.parameters()]
    )
    monkeypatch.setattr(nn.Module, "mean_weight", fingerprint, raising=False)


def test_the_weights_on_disk_are_those_of_the_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [(0.5, 0.1), (0.5, 0.9), (0.5, 0.2)])
    job = run(tmp_path)
    job.start()
    conv = "backbone.conv1.0.weight"
    at: list[Tensor] = []
    job.fit(lambda *_: at.append(dict(job.ema.module.named_parameters())[conv].detach().clone()))
    job.finish("best")
    saved = load_file(tmp_path / "weights.safetensors")[conv]
    assert torch.equal(saved, at[1])
    assert not torch.equal(saved, at[2])


def test_patience_stops_a_run_that_no_longer_gets_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [(0.5, 0.5), (0.5, 0.6), (0.5, 0.6), (0.5, 0.1)])
    job = run(tmp_path, train={"epochs": 10, "patience": 2})
    job.start()
    seen: list[Epoch] = []
    job.fit(lambda epoch, _: seen.append(epoch))
    assert [epoch.epoch for epoch in seen] == [1, 2, 3, 4]
    assert job.best_epoch == 2


def test_a_loss_that_is_no_number_stops_with_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(10**6))

    def diverge(self: Run, *_: Any) -> Tensor:
        return torch.tensor(math.nan if next(steps) > 12 else 1.0)

    monkeypatch.setattr(Run, "_step", diverge)
    with pytest.raises(TrainingError, match=r"nan in epoch 2.*checkpoint of epoch 1.*train\.lr"):
        train(tiny_recipe(), tmp_path / "nan", device="cpu")
    assert json.loads((tmp_path / "nan/checkpoints/last.json").read_text())["epoch"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"threat": {"norm": "L2", "eps": 0.5}},
        {"train": {"optimizer": "adamw", "lr": 0.01, "schedule": "cosine", "epochs": 1}},
        {"train": {"amp": "bf16", "epochs": 1, "channels_last": False, "clip_grad": 1.0}},
        {"sparta": {"share": "site", "kernel_size": 1, "freeze": True}, "train": {"epochs": 1}},
        {"model": {"name": "resnet10t_relu"}, "attack": {"random_start": False}, "train": {"epochs": 1}},
        {"data": {"workers": 1, "flip": True}, "train": {"label_smoothing": 0.1, "epochs": 1}},
    ],
    ids=lambda change: "-".join(f"{k}.{next(iter(v))}" for k, v in change.items()),
)
def test_every_setting_trains(tmp_path: Path, change: dict[str, Any]) -> None:
    bundle = train(tiny_recipe(**change), tmp_path / "run", device="cpu")
    pixels = torch.rand(2, 3, 8, 8)
    assert load(bundle)(pixels).isfinite().all()
    if change.get("sparta", {}).get("freeze"):
        assert all((m.weight == 0).all() for m in sparta_modules(load(bundle)).values())


def test_extra_images_are_trained_on_and_recorded(tmp_path: Path) -> None:
    write_folder(tmp_path / "extra", {"3": 4, "8": 4})
    change: dict[str, Any] = {
        "data": {"extra": f"folder:{tmp_path / 'extra'}", "extra_ratio": 0.25, "randaugment": 1},
        "train": {"method": "mart", "awp": 0.01, "awp_start": 1, "epochs": 2, "batch_size": 256},
    }  # fmt: skip
    bundle = train(tiny_recipe(**change), tmp_path / "run", device="cpu")
    facts = bundle.manifest["provenance"]["extra_data"]
    assert (facts["images"], facts["ratio"]) == (8, 0.25)
    assert len(facts["sha256"]) == 64


def test_awp_waits_for_its_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []

    def spy(model: nn.Module, *args: Any) -> Any:
        epochs.append(len(job.history))
        return perturbed(model, *args)

    monkeypatch.setattr(learner, "perturbed", spy)
    scripted(monkeypatch, [(0.5, 0.5)] * 3)
    job = run(tmp_path, train={"awp": 0.01, "awp_start": 2, "epochs": 3}, attack={"steps": 1})
    job.start()
    job.fit(lambda *_: None)
    assert epochs == [2] * 11


@pytest.mark.parametrize(
    ("name", "kind"),
    [("cuda:99", InvalidValue), ("tpu", UnknownName), ("meta", UnknownName), ("cpu,gpu", UnknownName)],
)
def test_unknown_and_absent_devices(tmp_path: Path, name: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="device"):
        train(tiny_recipe(), tmp_path / "run", device=name)
    assert not (tmp_path / "run").exists()
