"""AutoAttack with a verification's budgets, against the closed form of a linear network."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from robust_export.attacks.autoattack import autoattack, check_budget
from robust_export.recipe.schema import Threat, Verify
from tests.conftest import Linear

CHEAP = Verify(iterations=20, targets=4, queries=100, batch_size=16)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.005), ("L2", 0.03)])
def test_agrees_with_closed_form(linear: Linear, norm: str, eps: float) -> None:
    threat = Threat("Linf" if norm == "Linf" else "L2", eps)
    found = autoattack(linear.module, linear.pixels, linear.labels, threat, CHEAP)
    robust = linear.robust(eps, norm)
    assert 0 < robust.sum() < len(robust)
    assert [name == "" for name in found.broken_by] == robust.tolist()
    assert list(found.accuracy) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert found.accuracy["square"] == robust.double().mean().item()


def test_examples_are_misclassified_and_within_the_budget(linear: Linear) -> None:
    found = autoattack(linear.module, linear.pixels, linear.labels, Threat("Linf", 0.005), CHEAP)
    broken = torch.tensor([bool(name) for name in found.broken_by])
    wrong = linear.module(found.adversarial).argmax(1) != linear.labels
    assert torch.equal(wrong, broken)
    assert (found.adversarial - linear.pixels).abs().max() <= 0.005 + 1e-6
    assert torch.equal(found.adversarial[~broken], linear.pixels[~broken])


def test_misclassified_images_are_not_attacked(linear: Linear) -> None:
    labels = linear.labels.clone()
    labels[:5] = (labels[:5] + 1) % 5
    attacked: list[int] = []
    found = autoattack(
        linear.module, linear.pixels, labels, Threat("Linf", 0.005), CHEAP,
        lambda _, images: attacked.append(images),
    )  # fmt: skip
    assert found.broken_by[:5] == ["clean"] * 5
    assert attacked[0] == len(labels) - 5
    assert attacked == sorted(attacked, reverse=True)  # each attack gets the images that are still robust


def test_seed_decides_and_global_rng_is_restored(linear: Linear) -> None:
    settings = Verify(attacks=("apgd-ce", "square"), iterations=3, queries=20)
    threat = Threat("Linf", 0.015)
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        runs.append(autoattack(linear.module, linear.pixels, linear.labels, threat, settings))
        assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(runs[0].adversarial, runs[1].adversarial)
    assert runs[0].broken_by == runs[1].broken_by


def test_no_further_attack_once_all_are_broken(linear: Linear) -> None:
    attacks: list[str] = []
    found = autoattack(
        linear.module, linear.pixels, linear.labels, Threat("Linf", 1.0), CHEAP,
        lambda name, _: attacks.append(name),
    )  # fmt: skip
    assert attacks == ["apgd-ce"]
    assert found.accuracy == dict.fromkeys(["apgd-ce", "apgd-t", "fab-t", "square"], 0.0)


def test_two_classes_skip_the_losses_that_need_more() -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    pixels = torch.rand(8, 1, 4, 4, generator=generator)
    labels = network(pixels).argmax(1)
    settings = Verify(attacks=("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"), iterations=3, queries=5)
    found = autoattack(network.eval(), pixels, labels, Threat("Linf", 0.1), settings)
    assert list(found.accuracy) == ["apgd-ce", "fab-t", "square"]
    assert "apgd-t not run: its loss needs 4 classes, the model has 2" in found.flags


def test_square_under_l2_is_skipped_on_small_images() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).eval()
    pixels = torch.full((4, 1, 4, 4), 0.5)
    settings = Verify(attacks=("apgd-ce", "square"), iterations=2, queries=2)
    found = autoattack(network, pixels, network(pixels).argmax(1), Threat("L2", 1e-4), settings)
    assert list(found.accuracy) == ["apgd-ce"]
    assert any(flag.startswith("square not run") for flag in found.flags)


def test_warnings_are_returned_and_not_printed(
    linear: Linear, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = linear.module(x)
            return logits + torch.randn_like(logits)

    with caplog.at_level(logging.WARNING):
        found = autoattack(
            Random(), linear.pixels, linear.labels, Threat("Linf", 0.001),
            Verify(attacks=("square",), queries=2),
        )  # fmt: skip
    assert any("randomized defense" in flag for flag in found.flags)
    assert len(found.flags) == len(set(found.flags))
    assert not caplog.records
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("norm", "shift", "within"), [("Linf", 0.1, True), ("Linf", 0.11, False), ("L2", 0.1, False)]
)
def test_check_budget(norm: str, shift: float, within: bool) -> None:
    """The L2 norm of a shift of 16 pixels by 0.1 is 0.4."""
    pixels = torch.full((2, 1, 4, 4), 0.5)
    threat = Threat("Linf" if norm == "Linf" else "L2", 0.1)
    with nullcontext() if within else pytest.raises(RuntimeError, match="exceeded its budget"):
        check_budget(pixels + shift, pixels, threat)


def test_check_budget_outside_the_pixel_range() -> None:
    pixels = torch.full((2, 1, 4, 4), 0.95)
    with pytest.raises(RuntimeError, match=r"pixels 1\.05 to 1\.05"):
        check_budget(pixels + 0.1, pixels, Threat("Linf", 0.2))
