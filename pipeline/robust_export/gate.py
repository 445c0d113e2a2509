"""The product of Sparta with a gradient that keeps two planes where autograd's own keeps four.

    y = relu(x) * (2 * s)          s = sigmoid(a)
    dy/dx = [x > 0] * 2 s          dy/da = 2 relu(x) * s * (1 - s)

It rounds as autograd does on its way through sigmoid, relu and the products: doubling is exact, so that
it may stand anywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Gate(torch.autograd.Function):
    """(x, a) to (y, s), all of one shape and floating-point type; differentiable as often as one likes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.sigmoid(attention)
        ctx.save_for_backward(x, share)
        ctx.set_materialize_grads(False)
        return torch.relu(x).mul_(2 * share), share

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, of_share: Tensor | None) -> tuple[Tensor | None, ...]:
        x, share = ctx.saved_tensors
        if torch.is_grad_enabled() or gradient is None:  # somebody will differentiate the gradient itself
            return _again(x, share, gradient, of_share)
        through = torch.ops.aten.threshold_backward(gradient, x, 0).mul_(2)
        of_attention = x * through
        if of_share is not None:
            of_attention += of_share
        torch.ops.aten.sigmoid_backward.grad_input(of_attention, share, grad_input=of_attention)
        return through.mul_(share), of_attention


def gated(x: Tensor, attention: Tensor) -> Tensor:
    """Return relu(x) * (2 * sigmoid(attention))."""
    result: Tensor = Gate.apply(x, attention)[0]
    return result


def _again(
    x: Tensor, share: Tensor, gradient: Tensor | None, of_share: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients in x and a by operations that autograd follows."""
    slope = share * (1 - share)
    if gradient is None:
        return None, slope * (0 if of_share is None else of_share)
    through = 2 * gradient * (x > 0)
    toward = x * through if of_share is None else x * through + of_share
    return through * share, toward * slope
