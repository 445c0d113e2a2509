"""Losses of the training methods (cross-entropy, TRADES, MART) as functions of logits; means over the batch.

Logits are [N, K]; labels are classes, int64 [N], or where stated probabilities, float [N, K] (CutMix).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN_OFFSET = 1e-4  # keeps MART's log(1 - p) finite; the value of its authors
TINY = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return mean(-log p_y), the loss of standard training and, on adversarial examples, of PGD-AT.

    Madry et al., arXiv 1706.06083, equation 2.1. With `smoothing` s the target is (1 - s) y + s / K.

    Args:
        labels: [N], or probabilities [N, K].
    """
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def trades(clean: Tensor, attacked: Tensor, labels: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Return CE(clean, y) + beta * mean(KL(p_clean || p_attacked)).

    Zhang et al., arXiv 1901.08573, equation 5. The gradient flows through both arguments.

    Args:
        clean, attacked: logits of the images and of their adversarial examples.
        labels: [N], or probabilities [N, K].
        beta: 1 / lambda of the paper; 6 is usual.
    """
    return cross_entropy(clean, labels, smoothing) + beta * kl_divergence(clean, attacked) / len(clean)


def kl_divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """Return KL(p_clean || p_attacked) summed over the batch; the attack of TRADES maximises it."""
    log_p, log_q = clean.float().log_softmax(1), attacked.float().log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def mart(clean: Tensor, attacked: Tensor, labels: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Return BCE(attacked, y) + beta * mean(KL(p_clean || p_attacked) * (1 - p_clean_y)).

        BCE = -log p_y - log(1.0001 - max over k != y of p_k), p of the attacked images

    Wang et al., "Improving adversarial robustness requires revisiting misclassified examples" (ICLR 2020),
    equations 6 and 11. `smoothing` applies to the first term.

    Args:
        clean, attacked: logits of the images and of their adversarial examples.
        labels: [N], classes.
        beta: lambda of the paper; 5 is usual.
    """
    p, q = clean.float().softmax(1), attacked.float().softmax(1)
    others = q.scatter(1, labels[:, None], 0.0).amax(1)
    margin = -torch.log(1 + MARGIN_OFFSET - others + TINY).mean()
    log_p, log_q = clean.float().log_softmax(1), attacked.float().log_softmax(1)
    divergence = (p * (log_p - log_q)).sum(1)
    error = 1 - p.gather(1, labels[:, None])[:, 0]
    return cross_entropy(attacked, labels, smoothing) + margin + beta * (divergence * error).mean()
