"""PGD and its parts against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robust_export.attacks.pgd import pgd, project, random_start
from robust_export.recipe.schema import Threat
from tests.conftest import Linear

LINF, L2 = Threat("Linf", 0.1), Threat("L2", 0.5)
THREATS = pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])


def size(delta: Tensor, threat: Threat) -> Tensor:
    flat = delta.flatten(1)
    return flat.abs().amax(1) if threat.norm == "Linf" else flat.square().sum(1).sqrt()


def linear_loss(direction: Tensor) -> nn.Module:
    """Return a network with two logits whose cross-entropy increases along `direction`."""

    class TwoLogits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = (x * direction).flatten(1).sum(1)
            return torch.stack([-score, score], dim=1)

    return TwoLogits()


@THREATS
def test_finds_the_optimum_of_a_linear_loss(threat: Threat) -> None:
    direction = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    x, y = torch.full((6, 3, 4, 4), 0.5), torch.zeros(6, dtype=torch.int64)
    found = pgd(
        linear_loss(direction), x, y, threat, steps=100, step_size=threat.eps / 4,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    unit = direction.sign() if threat.norm == "Linf" else direction / direction.norm()
    torch.testing.assert_close(found, x + threat.eps * unit, rtol=0, atol=2e-3)


@THREATS
def test_breaks_breakable_images_and_no_other(linear: Linear, threat: Threat) -> None:
    eps = 0.005 if threat.norm == "Linf" else 0.03
    threat = Threat(threat.norm, eps)
    found = pgd(
        linear.module, linear.pixels, linear.labels, threat, steps=60, step_size=eps / 8,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    correct = linear.module(found).argmax(1) == linear.labels
    robust = linear.robust(eps, threat.norm)
    assert robust.any()
    assert not robust.all()
    assert correct[robust].all()  # the closed form bounds every attack
    assert (correct & ~robust).sum() <= 4  # the cross-entropy may lead to another class than the nearest


@THREATS
def test_stays_in_the_ball_and_the_pixel_range(threat: Threat) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(16, 3, 4, 4, generator=generator).round(decimals=1)  # some pixels at 0 and at 1
    y = torch.zeros(16, dtype=torch.int64)
    network = linear_loss(torch.randn(3, 4, 4, generator=generator))
    for start in (None, generator):
        found = pgd(network, x, y, threat, steps=5, step_size=threat.eps, generator=start)
        assert found.min() >= 0
        assert found.max() <= 1
        assert size(found - x, threat).max() <= threat.eps * (1 + 1e-5)


@THREATS
def test_projection_onto_the_ball(threat: Threat) -> None:
    generator = torch.Generator().manual_seed(4)
    center = torch.full((5, 3, 4, 4), 0.5)
    inside = center + 0.001
    outside = center + torch.randn(center.shape, generator=generator)
    torch.testing.assert_close(project(inside, center, threat), inside)
    near = project(outside.clamp(0, 1), center, threat)
    torch.testing.assert_close(size(near - center, threat), torch.full((5,), threat.eps))


@THREATS
def test_random_start_fills_the_ball(threat: Threat) -> None:
    x = torch.full((512, 1, 4, 4), 0.5)
    start = random_start(x, threat, torch.Generator().manual_seed(5))
    radii = size(start - x, threat)
    assert radii.max() <= threat.eps * (1 + 1e-5)
    assert radii.max() > 0.9 * threat.eps
    assert not torch.equal(start[0], start[1])
    again = random_start(x, threat, torch.Generator().manual_seed(5))
    assert torch.equal(start, again)


def test_computes_no_gradient_of_weights(linear: Linear) -> None:
    pgd(linear.module, linear.pixels, linear.labels, LINF, steps=2, step_size=0.1)
    assert all(parameter.grad is None for parameter in linear.module.parameters())


def test_zero_steps_return_the_images(linear: Linear) -> None:
    found = pgd(linear.module, linear.pixels, linear.labels, LINF, steps=0, step_size=0.1)
    assert torch.equal(found, linear.pixels)


def test_works_under_no_grad(linear: Linear) -> None:
    with torch.no_grad():
        found = pgd(linear.module, linear.pixels, linear.labels, LINF, steps=1, step_size=0.1)
    assert not torch.equal(found, linear.pixels)
