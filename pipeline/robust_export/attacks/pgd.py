"""Projected gradient descent (Madry et al., arXiv 1706.06083) and single-step attacks, used by training."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from robust_export.recipe.schema import MAX_EPS, SingleStep, Threat
from robust_export.utils.sharded_rng import sharded_sample

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits [N, K], labels [N]) to the sum over the batch, a scalar


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy summed over the batch, so that gradients do not depend on the batch size."""
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
    start: Tensor | None = None,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Return images in the threat's ball around `pixels` that maximise the loss.

        x[t+1] = project(x[t] + step_size * direction(gradient of loss at x[t]))

    The direction is the sign of the gradient (Linf) or the gradient divided by its L2 norm (L2). No gradient
    of weights is computed. The model's mode is not changed: put it in eval mode, or batch norm updates its
    averages.

    Args:
        pixels: [N, C, H, W] in [0, 1].
        labels: [N].
        step_size: in units of pixels, like eps.
        generator: on the CPU, for a random start in the ball. None starts at the image itself.
        start: [N, C, H, W] in the ball, to start there instead.

    Returns:
        [N, C, H, W] in [0, 1], at most eps from `pixels`, detached.
    """
    x = pixels if start is None else start
    if generator is not None:
        x = random_start(pixels, threat, generator)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(model(x), labels), [x])
        x = project(x.detach() + step_size * direction(gradient, threat), pixels, threat)
    return x.detach()


def single_step(
    model: nn.Module | Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor, threat: Threat,
    kind: SingleStep, generator: Generator,
) -> Tensor:  # fmt: skip
    """Return adversarial examples made by one gradient step.

    n-fgsm (de Jorge et al., arXiv 2202.01181): noise of radius 2 eps, then a step of eps without projection;
    the result lies at most 3 eps from `pixels`. rs-fgsm (Wong et al., arXiv 2001.03994): a random point of
    the ball, then a step of 1.25 eps, projected into the ball. Both are clamped to [0, 1].
    """
    doubled = Threat(threat.norm, min(2 * threat.eps, MAX_EPS[threat.norm]))
    start = random_start(pixels, doubled if kind == "n-fgsm" else threat, generator)
    x = start.requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(cross_entropy(model(x), labels), [x])
    size = threat.eps if kind == "n-fgsm" else 1.25 * threat.eps
    moved = x.detach() + size * direction(gradient, threat)
    return moved.clamp(0, 1) if kind == "n-fgsm" else project(moved, pixels, threat)


def project(x: Tensor, center: Tensor, threat: Threat) -> Tensor:
    """Return `x` projected onto the threat's ball around `center`, then clamped to [0, 1].

    Clamping does not leave the ball, since `center` lies in [0, 1].
    """
    if threat.norm == "Linf":
        projected = torch.minimum(torch.maximum(x, center - threat.eps), center + threat.eps)
    else:
        delta = x - center
        projected = center + delta * (threat.eps / _l2(delta).clamp_min(1e-12)).clamp_max(1)
    return projected.clamp(0, 1)


def direction(gradient: Tensor, threat: Threat) -> Tensor:
    """Return the direction of steepest ascent, of length 1 in the threat's norm."""
    if threat.norm == "Linf":
        return gradient.sign()
    return gradient / _l2(gradient).clamp_min(1e-12)


def random_start(pixels: Tensor, threat: Threat, generator: Generator) -> Tensor:
    """Return a random point of each image's ball, clamped to [0, 1].

    Linf: uniform. L2: uniform direction, radius uniform in [0, eps].
    """
    shape, device = pixels.shape, pixels.device
    if threat.norm == "Linf":
        noise = sharded_sample(torch.rand, shape, generator).to(device) * 2 - 1
        return (pixels + threat.eps * noise).clamp(0, 1)
    noise = sharded_sample(torch.randn, shape, generator).to(device)
    radius = sharded_sample(torch.rand, (len(pixels), 1, 1, 1), generator).to(device)
    return (pixels + threat.eps * radius * noise / _l2(noise).clamp_min(1e-12)).clamp(0, 1)


def gaussian_start(pixels: Tensor, threat: Threat, generator: Generator, sigma: float = 1e-3) -> Tensor:
    """Return pixels + sigma * N(0, 1), projected onto the ball and [0, 1]."""
    noise = sharded_sample(torch.randn, pixels.shape, generator).to(pixels.device)
    return project(pixels + sigma * noise, pixels, threat)


def _l2(x: Tensor) -> Tensor:
    """Return each image's L2 norm, [N, 1, 1, 1]."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return norms
