"""Attacks on an artifact itself, which has no gradient: BPDA and Square.

A gradient attack cannot be applied to an ONNX file or an engine: where there is no gradient it succeeds at
nothing, which looks like robustness. BPDA (Athalye, Carlini & Wagner, arXiv 1802.00420)
takes the artifact's logits and its PyTorch twin's gradient; Square (Andriushchenko et al., arXiv 1912.00049)
needs logits alone. APGD and Square are the package `pyautoattack`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from robust_export.attacks.autoattack import LOGGER
from robust_export.recipe.schema import Threat, Verify
from robust_export.runtimes.classifier import Classifier, Logits, Pixels

Observe = Callable[[Pixels, Logits, Logits], None]  # (pixels, twin's logits, artifact's logits)


def bpda(
    artifact: Classifier,
    twin: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    threat: Threat,
    settings: Verify,
    observe: Observe = lambda pixels, ours, theirs: None,
) -> Tensor:
    """Run APGD with the artifact's forward pass and the twin's gradient.

    First on the cross-entropy, then, on what stands and with three classes or more, on the difference of
    logits ratio; `settings.iterations` each.

    Args:
        twin: the artifact's source, in eval mode, on the device of `pixels`.
        pixels: [N, C, H, W] in [0, 1].
        labels: [N].
        observe: is told what both say to every input on the way.

    Returns:
        [N, C, H, W] in the threat's ball: the example that the artifact misreads, else an attempt.
    """
    substitute = _Substitute(artifact, twin, observe)
    result = pixels.clone()
    stands = _stands(artifact, pixels, labels)
    classes = substitute(pixels[:1]).shape[1]
    for loss in ("ce", "dlr") if classes >= 3 else ("ce",):
        rest = stands.nonzero().flatten()
        if len(rest) == 0:
            break
        attack = APGDAttack(
            substitute, n_iter=settings.iterations, n_restarts=1, norm=threat.norm, eps=threat.eps,
            seed=settings.seed + 1, loss=loss, device=pixels.device, logger=_silent(),
        )  # fmt: skip
        with _own_randomness(pixels.device):
            found = attack.perturb(pixels[rest], labels[rest]).detach()
        result[rest] = found
        stands[rest] = _stands(artifact, found, labels[rest])
    return result


def square(artifact: Classifier, pixels: Tensor, labels: Tensor, threat: Threat, settings: Verify) -> Tensor:
    """Run Square on the artifact's logits alone, with `settings.queries` queries an image.

    Returns:
        [N, C, H, W] in the threat's ball: the example that the artifact misreads, else an attempt.
    """

    def predict(x: Tensor) -> Tensor:
        return torch.from_numpy(finite(artifact(_array(x)))).to(x.device)

    attack = SquareAttack(
        predict, norm=threat.norm, eps=threat.eps, n_queries=settings.queries, n_restarts=1,
        p_init=0.8, resc_schedule=False, seed=settings.seed + 1, device=pixels.device,
    )  # fmt: skip
    with _own_randomness(pixels.device):
        found: Tensor = attack.perturb(pixels, labels).detach()
    return found


def finite(logits: Logits) -> Logits:
    """Return the logits [N, K], with zeros, in which nothing is decided, for rows that are not finite."""
    return np.where(np.isfinite(logits).all(axis=1, keepdims=True), logits, np.float32(0))


class _Substitute(nn.Module):
    """The artifact's logits, with the twin's gradient."""

    def __init__(self, artifact: Classifier, twin: nn.Module, observe: Observe) -> None:
        super().__init__()
        self.artifact, self.observe = artifact, observe
        self.twin = twin

    def forward(self, x: Tensor) -> Tensor:
        pixels = _array(x)
        theirs = self.artifact(pixels)
        result = torch.from_numpy(finite(theirs)).to(x.device)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return result
        ours = self.twin(x)
        self.observe(pixels, ours.detach().cpu().numpy(), theirs)
        replaced: Tensor = _Replace.apply(ours, result)
        return replaced


class _Replace(torch.autograd.Function):
    """Forward: the second argument. Backward: to the first, as if it had been that one."""

    @staticmethod
    def forward(_: Any, ours: Tensor, theirs: Tensor) -> Tensor:  # noqa: ARG004
        return theirs.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _stands(artifact: Classifier, pixels: Tensor, labels: Tensor) -> Tensor:
    """Return which images the artifact decides right, [N] of bool."""
    logits = artifact(_array(pixels))
    right = np.isfinite(logits).all(axis=1) & (logits.argmax(1) == labels.cpu().numpy())
    return torch.from_numpy(right).to(pixels.device)


def _array(x: Tensor) -> Pixels:
    array: Pixels = x.detach().cpu().numpy().astype(np.float32, copy=False)
    return array


def _own_randomness(device: torch.device) -> Any:
    """Keep the package from seeding the caller's random numbers."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _silent() -> logging.Logger:
    """Return a logger for warnings of vanishing gradients, which AutoAttack gave about the twin already."""
    logger = logging.getLogger(f"{LOGGER}.artifact")
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)
    return logger
