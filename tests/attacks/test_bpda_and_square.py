"""BPDA and Square on an artifact, against the closed form of a linear network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from robust_export.attacks.artifact import bpda, finite, square
from robust_export.recipe.schema import Threat, Verify
from robust_export.runtimes.classifier import Logits, Pixels
from tests.conftest import Linear

CHEAP = Verify(iterations=30, queries=300, batch_size=16)


class Exported:
    """A module as an artifact: arrays in, arrays out, no gradient."""

    runtime, precision = "test", "fp32"

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.asked = 0

    def __call__(self, pixels: Pixels) -> Logits:
        self.asked += len(pixels)
        with torch.no_grad():
            logits: Logits = self.module(torch.from_numpy(pixels)).numpy()
        return logits


def broken(artifact: Exported, found: torch.Tensor, labels: torch.Tensor) -> list[bool]:
    wrong: list[bool] = (artifact(found.numpy()).argmax(1) != labels.numpy()).tolist()
    return wrong


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.005), ("L2", 0.03)])
def test_bpda_agrees_with_the_closed_form(linear: Linear, norm: str, eps: float) -> None:
    threat = Threat("Linf" if norm == "Linf" else "L2", eps)
    artifact = Exported(linear.module)
    found = bpda(artifact, linear.module, linear.pixels, linear.labels, threat, CHEAP)
    assert broken(artifact, found, linear.labels) == (~linear.robust(eps, norm)).tolist()
    size = (found - linear.pixels).flatten(1)
    assert (size.abs().amax(1) if norm == "Linf" else size.norm(dim=1)).max() <= eps * 1.0001


def test_bpda_attacks_the_artifact_and_not_its_twin(linear: Linear) -> None:
    """The artifact is a twin with larger weights on one class: other images break."""
    other = nn.Sequential(nn.Flatten(), nn.Linear(108, 5))
    other.load_state_dict(linear.module.state_dict())
    with torch.no_grad():
        other.get_parameter("1.bias")[0] += 1.0
    artifact = Exported(other.eval())
    threat = Threat("Linf", 0.005)
    found = bpda(artifact, linear.module, linear.pixels, linear.labels, threat, CHEAP)
    twin = bpda(Exported(linear.module), linear.module, linear.pixels, linear.labels, threat, CHEAP)
    expected = Linear(other, linear.pixels, linear.labels)
    assert broken(artifact, found, linear.labels) == (~expected.robust(0.005, "Linf")).tolist()
    assert broken(artifact, found, linear.labels) != broken(artifact, twin, linear.labels)


def test_bpda_tells_what_both_said(linear: Linear) -> None:
    seen: list[tuple[Pixels, Logits, Logits]] = []
    artifact = Exported(linear.module)
    bpda(
        artifact, linear.module, linear.pixels, linear.labels, Threat("Linf", 0.001),
        Verify(iterations=2), lambda *told: seen.append(told),
    )  # fmt: skip
    assert sum(len(pixels) for pixels, _, _ in seen) >= 2 * len(linear.pixels)
    for pixels, ours, theirs in seen:
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_allclose(theirs, artifact(pixels), atol=1e-5)


def test_square_breaks_most_of_what_can_be_broken_and_nothing_else(linear: Linear) -> None:
    artifact = Exported(linear.module)
    found = square(artifact, linear.pixels, linear.labels, Threat("Linf", 0.01), CHEAP)
    fell, can = np.array(broken(artifact, found, linear.labels)), (~linear.robust(0.01, "Linf")).numpy()
    assert not (fell & ~can).any()
    assert fell.sum() >= 0.7 * can.sum() > 0
    assert (found - linear.pixels).abs().max() <= 0.01 * 1.0001


def test_square_needs_no_gradient_and_counts_its_queries(linear: Linear) -> None:
    artifact = Exported(linear.module)
    square(artifact, linear.pixels, linear.labels, Threat("Linf", 1e-6), Verify(queries=10))
    assert artifact.asked == 40 * (10 + 3)  # the start, and a look before and after


def test_the_seed_decides_everything_and_the_callers_random_numbers_are_left_alone(linear: Linear) -> None:
    artifact, threat = Exported(linear.module), Threat("Linf", 0.003)
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        runs.append((
            square(artifact, linear.pixels, linear.labels, threat, CHEAP),
            bpda(artifact, linear.module, linear.pixels, linear.labels, threat, CHEAP),
        ))  # fmt: skip
        assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_logits_that_are_not_finite_decide_nothing(linear: Linear) -> None:
    class Broken(Exported):
        def __call__(self, pixels: Pixels) -> Logits:
            logits = super().__call__(pixels)
            logits[::2] = np.nan
            return logits

    np.testing.assert_array_equal(
        finite(np.array([[1, np.inf], [2, 3]], np.float32)), np.array([[0, 0], [2, 3]], np.float32)
    )
    artifact = Broken(linear.module)
    for found in (
        bpda(artifact, linear.module, linear.pixels, linear.labels, Threat("Linf", 0.001), CHEAP),
        square(artifact, linear.pixels, linear.labels, Threat("Linf", 0.001), CHEAP),
    ):
        assert torch.isfinite(found).all()
