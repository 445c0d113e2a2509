"""Losses against their formulas, computed image by image in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from robust_export.training.losses import cross_entropy, kl_divergence, mart, trades

CASES = pytest.mark.parametrize(("beta", "smoothing"), [(6.0, 0.0), (1.0, 0.1), (0.0, 0.0)])


def example(n: int = 7, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Return two sets of logits and labels."""
    generator = torch.Generator().manual_seed(0)
    clean, attacked = (3 * torch.randn(n, classes, generator=generator) for _ in range(2))
    return clean, attacked, torch.randint(classes, (n,), generator=generator)


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def smooth_entropy(row: list[float], label: int, smoothing: float) -> float:
    """Return -sum_k t_k log p_k, t = (1 - s) onehot + s / K."""
    p = softmax(row)
    targets = [(1 - smoothing) * (k == label) + smoothing / len(p) for k in range(len(p))]
    return -sum(t * math.log(q) for t, q in zip(targets, p, strict=True))


def divergence(row: list[float], other: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(softmax(row), softmax(other), strict=True))


@CASES
def test_trades_equals_its_formula(beta: float, smoothing: float) -> None:
    clean, attacked, labels = example()
    rows = zip(clean.double().tolist(), attacked.double().tolist(), labels.tolist(), strict=True)
    expected = [smooth_entropy(a, y, smoothing) + beta * divergence(a, b) for a, b, y in rows]
    found = trades(clean, attacked, labels, beta, smoothing)
    assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@CASES
def test_mart_equals_its_formula(beta: float, smoothing: float) -> None:
    clean, attacked, labels = example()
    expected = []
    rows = zip(clean.double().tolist(), attacked.double().tolist(), labels.tolist(), strict=True)
    for a, b, y in rows:
        largest_other = max(p for k, p in enumerate(softmax(b)) if k != y)
        boosted_entropy = smooth_entropy(b, y, smoothing) - math.log(1.0001 - largest_other)
        expected.append(boosted_entropy + beta * divergence(a, b) * (1 - softmax(a)[y]))
    found = mart(clean, attacked, labels, beta, smoothing)
    assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_takes_classes_and_probabilities(smoothing: float) -> None:
    clean, _, labels = example()
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    rows = zip(clean.double().tolist(), labels.tolist(), strict=True)
    expected = [smooth_entropy(row, y, smoothing) for row, y in rows]
    for target in (labels, one_hot):
        found = cross_entropy(clean, target, smoothing)
        assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_losses_are_finite_for_probabilities_0_and_1() -> None:
    certain = torch.tensor([[1000.0, 0.0, 0.0]], requires_grad=True)
    wrong = torch.tensor([0])
    other = torch.tensor([[0.0, 1000.0, 0.0]], requires_grad=True)
    for loss in (trades(certain, other, wrong, 6.0), mart(certain, other, wrong, 5.0)):
        assert loss.isfinite()
        gradients = torch.autograd.grad(loss, [certain, other])
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_gradient_of_trades_in_both_logits() -> None:
    clean, attacked, labels = example()
    a, b = clean.requires_grad_(), attacked.requires_grad_()
    ga, gb = torch.autograd.grad(trades(a, b, labels, 6.0), [a, b])
    p, q = a.double().softmax(1), b.double().softmax(1)
    torch.testing.assert_close(gb.double(), 6.0 * (q - p) / len(labels), rtol=1e-4, atol=1e-6)
    log = (p / q).log()
    kl_gradient = p * (log - (p * log).sum(1, keepdim=True))
    one_hot = torch.nn.functional.one_hot(labels, 5)
    expected = (p - one_hot + 6.0 * kl_gradient) / len(labels)
    torch.testing.assert_close(ga.double(), expected, rtol=1e-4, atol=1e-6)


def test_equal_logits_have_no_divergence() -> None:
    clean, _, labels = example()
    assert kl_divergence(clean, clean).item() == pytest.approx(0, abs=1e-6)
    assert trades(clean, clean, labels, 6.0) == pytest.approx(cross_entropy(clean, labels).item(), rel=1e-6)
