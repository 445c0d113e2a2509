"""Mixed precision: dtypes of the computation, attacks within their budget, gradients of float16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_export.attacks.pgd import pgd
from robust_export.recipe.schema import Threat
from robust_export.training import methods
from robust_export.training.precision import GRADIENT_SCALE, ScaledGradient
from tests.training.trainers import first_images, make_trainer, take_steps


@pytest.mark.parametrize(
    ("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_amp_sets_the_dtype_of_convolutions(tmp_path: Path, amp: str, dtype: torch.dtype) -> None:
    trainer = make_trainer(tmp_path, train={"amp": amp})
    seen: list[tuple[bool, torch.dtype]] = []
    conv = next(module for module in trainer.step.model.modules() if isinstance(module, nn.Conv2d))
    conv.register_forward_hook(lambda _, __, output: seen.append((trainer.step.model.training, output.dtype)))
    trainer.step(*first_images(trainer, 8), torch.Generator().manual_seed(0))
    trainer.validator.robust_accuracies()
    assert set(seen) == {(False, dtype), (True, dtype)}  # attacks and accuracies; loss


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_attacks_in_half_precision_use_their_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amp: str, norm: str
) -> None:
    threat = Threat(norm, 0.1 if norm == "Linf" else 1.0)  # type: ignore[arg-type]
    attacked: list[Tensor] = []
    original = pgd

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        attacked.append(original(*args, **kwargs))
        return attacked[-1]

    monkeypatch.setattr(methods, "pgd", spy)
    trainer, losses = take_steps(tmp_path, train={"amp": amp}, threat={"norm": norm, "eps": threat.eps})
    pixels, _ = first_images(trainer)
    assert len(attacked) == len(losses) == 3
    assert all(loss.isfinite() for loss in losses)
    for images in attacked:
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert images.max() <= 1
        delta = (images - pixels).flatten(1)
        size = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
        assert (size <= threat.eps * (1 + 1e-5)).all()
        assert size.mean() > 0.3 * threat.eps


class HalfLinear(nn.Module):
    """Two logits, `slope` times two pixels, computed in float16."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2].half() * self.slope


@pytest.mark.parametrize("slope", [float("inf"), float("nan")])
def test_non_finite_gradient_stays_in_the_ball(slope: float) -> None:
    pixels, labels, threat = torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64), Threat("L2", 0.5)
    attacked = pgd(ScaledGradient(HalfLinear(slope)), pixels, labels, threat, steps=3, step_size=0.2)
    assert attacked.isfinite().all()
    assert ((attacked - pixels).flatten(1).norm(dim=1) <= 0.5 + 1e-6).all()


def test_small_gradient_does_not_vanish() -> None:
    """A gradient of 2e-8 is 0 in float16, whose smallest number is 6e-8."""
    largest = []
    for network in (HalfLinear(1.0), ScaledGradient(HalfLinear(1.0))):
        x = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
        (gradient,) = torch.autograd.grad((network(x).float() * 2e-8).sum(), x)
        largest.append(gradient.abs().max().item())
    assert largest == [0, pytest.approx(GRADIENT_SCALE * 2e-8, rel=0.01)]
