"""Projected gradient descent, the attack that training uses (Madry et al., arXiv 1706.06083)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from robust_export.config import Threat

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits [N, K], labels [N]) to a sum over N


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy summed over the batch, so that each image has its own gradient."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def pgd(
    model: nn.Module | Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    generator: Generator | None = None,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Return images in the threat's ball around `pixels` that raise the loss.

        x[t+1] = project(x[t] + step_size * direction(gradient of loss at x[t]))

    The direction is the gradient's sign (Linf) or the gradient over its L2 norm (L2). Only the
    gradient with respect to the pixels is computed, none with respect to weights. The model is
    called in the mode it is in: put it in eval mode for batch norm's sake.

    Args:
        pixels: [N, C, H, W] in [0, 1].
        labels: [N].
        step_size: in units of pixels, as eps is.
        generator: on the CPU; starts each image at a random point of the ball. None starts at
            the image itself.

    Returns:
        [N, C, H, W] in [0, 1], at most eps from `pixels`, detached.
    """
    x = pixels if generator is None else random_start(pixels, threat, generator)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(model(x), labels), [x])
        x = project(x.detach() + step_size * direction(gradient, threat), pixels, threat)
    return x.detach()


def project(x: Tensor, center: Tensor, threat: Threat) -> Tensor:
    """Return the point of the ball around `center`, within [0, 1], that is nearest to `x`.

    For L2 the two projections follow each other; clamping to [0, 1] never leaves the ball, since
    `center` lies in [0, 1] itself.
    """
    if threat.norm == "Linf":
        near = torch.minimum(torch.maximum(x, center - threat.eps), center + threat.eps)
    else:
        delta = x - center
        near = center + delta * (threat.eps / _l2(delta).clamp_min(1e-12)).clamp_max(1)
    return near.clamp(0, 1)


def direction(gradient: Tensor, threat: Threat) -> Tensor:
    """Return the steepest ascent of length 1 in the threat's norm."""
    if threat.norm == "Linf":
        return gradient.sign()
    return gradient / _l2(gradient).clamp_min(1e-12)


def random_start(pixels: Tensor, threat: Threat, generator: Generator) -> Tensor:
    """Return a random point of each image's ball, clamped to [0, 1]; uniform in Linf."""
    shape, device = pixels.shape, pixels.device
    if threat.norm == "Linf":
        noise = torch.rand(shape, generator=generator).to(device) * 2 - 1
        return (pixels + threat.eps * noise).clamp(0, 1)
    noise = torch.randn(shape, generator=generator).to(device)
    radius = torch.rand(len(pixels), 1, 1, 1, generator=generator).to(device)
    return (pixels + threat.eps * radius * noise / _l2(noise).clamp_min(1e-12)).clamp(0, 1)


def _l2(x: Tensor) -> Tensor:
    """Return each image's L2 norm, [N, 1, 1, 1]."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return norms
