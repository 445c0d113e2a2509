"""Validation accuracies against a count by hand, and which network they are of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from robust_export.attacks.pgd import pgd
from robust_export.training import validate
from robust_export.training.health import RobustAccuracies
from tests.training.trainers import make_trainer, take_steps


def test_accuracy_counts_all_val_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = take_steps(tmp_path, 5, attack={"random_start": False})
    model, threat = trainer.step.model.eval(), trainer.recipe.threat
    images = trainer.validator.images
    pixels, labels = images.batch(range(len(images)))
    attacked = pgd(model, pixels, labels, threat, steps=2, step_size=0.25 * threat.eps)
    expected = [(model(x).argmax(1) == labels).double().mean().item() for x in (pixels, attacked)]
    assert expected[0] != expected[1]
    for batch_size in (256, 50):
        monkeypatch.setattr(validate, "EVAL_BATCH", batch_size)
        assert trainer.validator.accuracy(model) == pytest.approx(expected)


def always_predict(network: nn.Module, label: int) -> None:
    """Set the last layer to a bias: the network predicts `label` for every image."""
    classifier = network.get_submodule("backbone.fc")
    assert isinstance(classifier, nn.Linear)
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.copy_(torch.eye(10)[label])


def test_robust_accuracies_are_of_the_model_not_its_average(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, train={"method": "fast"})
    counts = trainer.validator.images.labels.bincount(minlength=10)
    most, least = int(counts.argmax()), int(counts.argmin())
    assert counts[most] > counts[least]
    always_predict(trainer.step.model, most)
    always_predict(trainer.step.ema.module, least)
    expected = pytest.approx(counts[most].item() / len(trainer.validator.images))
    assert trainer.validator.robust_accuracies() == RobustAccuracies(expected, expected)  # type: ignore[arg-type]
