"""Adversarial weight perturbation (Wu, Xia & Wang, arXiv 2004.05884), added to any method's loss.

    w' = w + gamma * ||w|| * g / ||g||        g: gradient of the loss in w, on the attacked batch

The gradient of the optimisation step is taken at w'; the step itself starts from w.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def perturbed_weights(
    model: nn.Module,
    loss: Callable[[], Tensor],
    gamma: float,
    average: Callable[[list[Tensor]], None] = lambda gradients: None,
) -> Iterator[None]:
    """Perturb the model's weights to increase the loss; restore them bit for bit on exit.

    Perturbs the trainable parameters of two or more dimensions, each by `gamma` times its own norm; a weight
    that is zero stays zero. Changes that `loss` makes to buffers (batch norm's averages) are undone before
    the body runs.

    Args:
        loss: returns the scalar loss of the batch, or a multiple of it; called once.
        gamma: relative size of the perturbation.
        average: replaces the gradients, in place, by those of the whole batch that several processes share.
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
