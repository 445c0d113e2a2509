"""AutoAttack as we run it, against the closed form of a linear network."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from robust_export.attacks.autoattack import autoattack
from robust_export.recipe.schema import Threat, Verify
from tests.conftest import Linear

CHEAP = Verify(iterations=20, targets=4, queries=100, batch_size=16)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.005), ("L2", 0.03)])
def test_agrees_with_the_closed_form(linear: Linear, norm: str, eps: float) -> None:
    threat = Threat("Linf" if norm == "Linf" else "L2", eps)
    found = autoattack(linear.module, linear.pixels, linear.labels, threat, CHEAP)
    robust = linear.robust(eps, norm)
    assert 0 < robust.sum() < len(robust)
    assert [name == "" for name in found.broken_by] == robust.tolist()
    assert list(found.accuracy) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert found.accuracy["square"] == robust.double().mean().item()


def test_examples_are_wrong_and_within_the_budget(linear: Linear) -> None:
    found = autoattack(linear.module, linear.pixels, linear.labels, Threat("Linf", 0.005), CHEAP)
    broken = torch.tensor([bool(name) for name in found.broken_by])
    wrong = linear.module(found.adversarial).argmax(1) != linear.labels
    assert torch.equal(wrong, broken)
    assert (found.adversarial - linear.pixels).abs().max() <= 0.005 + 1e-6
    assert torch.equal(found.adversarial[~broken], linear.pixels[~broken])


def test_misread_images_are_not_attacked(linear: Linear) -> None:
    labels = linear.labels.clone()
    labels[:5] = (labels[:5] + 1) % 5
    attacked: list[int] = []
    found = autoattack(
        linear.module, linear.pixels, labels, Threat("Linf", 0.005), CHEAP,
        lambda _, images: attacked.append(images),
    )  # fmt: skip
    assert found.broken_by[:5] == ["clean"] * 5
    assert attacked[0] == len(labels) - 5
    assert attacked == sorted(attacked, reverse=True)  # each attack gets what still stands


def test_the_seed_decides_everything(linear: Linear) -> None:
    settings = Verify(attacks=("apgd-ce", "square"), iterations=3, queries=20)
    threat = Threat("Linf", 0.015)
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        runs.append(autoattack(linear.module, linear.pixels, linear.labels, threat, settings))
        assert torch.equal(before, torch.random.get_rng_state())  # the caller's is left alone
    assert torch.equal(runs[0].adversarial, runs[1].adversarial)
    assert runs[0].broken_by == runs[1].broken_by


def test_all_broken_needs_no_further_attack(linear: Linear) -> None:
    found = autoattack(linear.module, linear.pixels, linear.labels, Threat("Linf", 1.0), CHEAP)
    assert found.accuracy == dict.fromkeys(["apgd-ce", "apgd-t", "fab-t", "square"], 0.0)


def test_two_classes_leave_out_the_losses_that_need_more() -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    pixels = torch.rand(8, 1, 4, 4, generator=generator)
    labels = network(pixels).argmax(1)
    settings = Verify(attacks=("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"), iterations=3, queries=5)
    found = autoattack(network.eval(), pixels, labels, Threat("Linf", 0.1), settings)
    assert list(found.accuracy) == ["apgd-ce", "fab-t", "square"]
    assert "apgd-t not run: its loss needs 4 classes, there are 2" in found.flags


def test_square_under_l2_is_left_out_on_images_that_are_too_small_for_it() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).eval()
    pixels = torch.full((4, 1, 4, 4), 0.5)
    settings = Verify(attacks=("apgd-ce", "square"), iterations=2, queries=2)
    found = autoattack(network, pixels, network(pixels).argmax(1), Threat("L2", 1e-4), settings)
    assert list(found.accuracy) == ["apgd-ce"]
    assert any(flag.startswith("square not run") for flag in found.flags)


def test_its_warnings_are_kept_and_not_printed(
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
