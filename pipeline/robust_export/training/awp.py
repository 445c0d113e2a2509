"""Adversarial weight perturbation (Wu, Xia & Wang, arXiv 2004.05884), on top of any method's loss.

    w' = w + gamma * ||w|| * g / ||g||        g: the loss's gradient in w, on the attacked batch

The gradient that training descends along is that at w'; the step is taken from w.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def perturbed(
    model: nn.Module,
    loss: Callable[[], Tensor],
    gamma: float,
    average: Callable[[list[Tensor]], None] = lambda gradients: None,
) -> Iterator[None]:
    """Perturb the model's weights within, against its own loss, and put them back afterwards to the bit.

    Weights are the learnt parameters of two or more dimensions, each perturbed by `gamma` times its own norm;
    one that is zero stays. What `loss` does to buffers (batch norm's averages) is undone before the body.

    Args:
        loss: computes the scalar loss of the batch, or a multiple of it; called once.
        average: makes the gradients, in place, those of the batch that several processes share.
    """
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    buffers = [buffer.clone() for buffer in model.buffers()]
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    average([gradient.nan_to_num_() for gradient in gradients if gradient is not None])
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        saved = [weight.detach().clone() for weight in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.add_(gamma * weight.norm() / gradient.norm().clamp_min(1e-20) * gradient)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, saved, strict=True):
                weight.copy_(before)
