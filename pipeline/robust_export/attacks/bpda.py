"""BPDA (Athalye, Carlini & Wagner, arXiv 1802.00420): attack an artifact with a surrogate's gradient.

A gradient attack cannot be applied to an ONNX file or an engine: without a gradient it never succeeds, which
looks like robustness. BPDA takes the logits of the artifact and the gradient of the PyTorch model that it was
exported from. APGD is that of the package `pyautoattack`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

from robust_export.attacks.artifact_logits import correctly_classified, finite, to_array
from robust_export.attacks.autoattack import LOGGER, isolated_rng
from robust_export.recipe.schema import Threat, Verify
from robust_export.runtimes.classifier import Classifier, Logits, Pixels

Observe = Callable[[Pixels, Logits, Logits], None]  # (pixels, surrogate's logits, artifact's logits)


def bpda(
    artifact: Classifier,
    surrogate: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    threat: Threat,
    settings: Verify,
    observe: Observe = lambda pixels, surrogate_logits, artifact_logits: None,
) -> Tensor:
    """Run APGD with the artifact's forward pass and the surrogate's gradient.

    The loss is the cross-entropy first. With three classes or more, images that are still correctly
    classified are attacked again with the difference-of-logits-ratio loss. Each run has `settings.iterations`
    iterations.

    Args:
        surrogate: the reference model, in eval mode, on the device of `pixels`.
        pixels: [N, C, H, W] in [0, 1].
        labels: [N].
        observe: called with each input of a gradient step and the logits of both; they may change later.

    Returns:
        [N, C, H, W] in the threat's ball: a misclassified example where one was found, else the last attempt.
    """
    model = _SurrogateGradient(artifact, surrogate, observe)
    result = pixels.clone()
    robust = correctly_classified(artifact, pixels, labels)
    classes = model(pixels[:1]).shape[1]
    for loss in ("ce", "dlr") if classes >= 3 else ("ce",):
        rows = robust.nonzero().flatten()
        if len(rows) == 0:
            break
        attack = APGDAttack(
            model, n_iter=settings.iterations, n_restarts=1, norm=threat.norm, eps=threat.eps,
            seed=settings.seed + 1, loss=loss, device=pixels.device, logger=_silent_logger(),
        )  # fmt: skip
        with isolated_rng(pixels.device):
            adversarial = attack.perturb(pixels[rows], labels[rows]).detach()
        result[rows] = adversarial
        robust[rows] = correctly_classified(artifact, adversarial, labels[rows])
    return result


class _SurrogateGradient(nn.Module):
    """The artifact's logits with the surrogate's gradient."""

    def __init__(self, artifact: Classifier, surrogate: nn.Module, observe: Observe) -> None:
        super().__init__()
        self.artifact, self.surrogate, self.observe = artifact, surrogate, observe

    def forward(self, x: Tensor) -> Tensor:
        pixels = to_array(x)
        artifact_logits = self.artifact(pixels)
        result = torch.from_numpy(finite(artifact_logits)).to(x.device)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return result
        surrogate_logits = self.surrogate(x)
        self.observe(pixels, surrogate_logits.detach().cpu().numpy(), artifact_logits)
        replaced: Tensor = _ReplaceForward.apply(surrogate_logits, result)
        return replaced


class _ReplaceForward(torch.autograd.Function):
    """Return the second argument; pass the gradient to the first."""

    @staticmethod
    def forward(_: Any, surrogate_logits: Tensor, artifact_logits: Tensor) -> Tensor:  # noqa: ARG004
        return artifact_logits.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _silent_logger() -> logging.Logger:
    """Return a logger that drops warnings of vanishing gradients; AutoAttack gives them for the surrogate."""
    logger = logging.getLogger(f"{LOGGER}.artifact")
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)
    return logger
