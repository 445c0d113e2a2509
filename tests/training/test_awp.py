"""Adversarial weight perturbation: its direction and size, and that it is undone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robust_export.training.awp import perturbed_weights


class Net(nn.Module):
    """A convolution, batch norm and a linear layer: [N, 1, 4, 4] to [N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.norm(self.conv(x)).flatten(1))
        return result


def loss_of(model: nn.Module) -> Tensor:
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.cross_entropy(model(x), torch.arange(6) % 3)


def scaled_loss_of(model: nn.Module, factor: float) -> Tensor:
    return factor * loss_of(model)


def test_weight_moves_by_gamma_times_its_norm() -> None:
    """For a loss <w, c>, w' = w + gamma ||w|| c / ||c|| maximises it."""
    layer = nn.Linear(4, 1)
    c = torch.tensor([[3.0, 0.0, -4.0, 0.0]])
    before = layer.weight.detach().clone()
    with perturbed_weights(layer, lambda: (layer.weight * c).sum() + layer.bias.sum(), 0.1):
        torch.testing.assert_close(layer.weight.detach(), before + 0.1 * before.norm() * c / 5)
        assert (layer.weight * c).sum() > (before * c).sum()


def test_scale_of_the_loss_has_no_influence() -> None:
    """float16 needs a factor; a gradient that overflows leaves the weights unchanged."""
    moved = []
    for factor in (1.0, 1024.0):
        model = Net().train()
        with perturbed_weights(model, partial(scaled_loss_of, model, factor), 0.05):
            moved.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(moved[0], moved[1])
    model = Net().train()
    before = [p.detach().clone() for p in model.parameters()]
    with perturbed_weights(model, partial(scaled_loss_of, model, float("inf")), 0.05):
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_weights_and_buffers_are_restored() -> None:
    model = Net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    within: dict[str, Tensor] = {}
    with perturbed_weights(model, lambda: loss_of(model), 0.01):
        within |= {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    moved = {name for name in before if not torch.equal(within[name], before[name])}
    assert moved == {"conv.weight", "fc.weight"}  # no bias, norm or running statistic
    for name in moved:
        assert (within[name] - before[name]).norm() == pytest.approx(
            0.01 * before[name].norm().item(), rel=1e-4
        )
    assert all(p.grad is None for p in model.parameters())


def test_loss_is_higher_within() -> None:
    model = Net().train()
    plain = loss_of(model).item()
    with perturbed_weights(model, lambda: loss_of(model), 0.05):
        assert loss_of(model).item() > plain


def test_frozen_and_zero_weights_stay() -> None:
    model = Net()
    model.conv.weight.requires_grad_(False)
    before = model.conv.weight.clone()
    with torch.no_grad():
        model.fc.weight.zero_()
    with perturbed_weights(model, lambda: loss_of(model), 0.1):
        assert (model.fc.weight == 0).all()
        assert torch.equal(model.conv.weight, before)


def test_error_within_restores_the_weights() -> None:
    model = Net()
    before = model.fc.weight.detach().clone()
    with pytest.raises(ZeroDivisionError), perturbed_weights(model, lambda: loss_of(model), 0.1):
        raise ZeroDivisionError
    assert torch.equal(model.fc.weight.detach(), before)
