"""Numerical parity: how far an artifact's logits are from the source's on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robust_export.classifier import Logits


@dataclass(frozen=True)
class Parity:
    """Differences between two classifiers' logits over a set of inputs."""

    max_abs: float  # largest |difference| of a logit
    mean_abs: float
    cosine: float  # smallest cosine similarity of two logit vectors of one input
    top1_agreement: float  # share of inputs on which both decide alike
    non_finite: int  # artifact's logits that are NaN or infinite


def parity(source: Logits, artifact: Logits) -> Parity:
    """Compare logits [N, K] with logits [N, K] of the same inputs, in float64.

    Non-finite logits count as an infinite difference (written as the largest float).
    """
    a, b = source.astype(np.float64), artifact.astype(np.float64)
    finite = np.isfinite(b).all(axis=1)
    if not finite.all():
        huge = float(np.finfo(np.float64).max)
        agreement = float((finite & (a.argmax(1) == b.argmax(1))).mean())
        return Parity(huge, huge, -1.0, agreement, int((~np.isfinite(b)).sum()))
    gap = np.abs(a - b)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    agreement = float((a.argmax(1) == b.argmax(1)).mean())
    return Parity(float(gap.max()), float(gap.mean()), float(cosine.min()), agreement, 0)


def logit_scale(source: Logits) -> float:
    """Return the unit in which gaps are judged: the median spread of an input's logits.

    The spread is the largest logit minus the smallest; the median is over inputs.
    """
    return float(np.median(np.ptp(source.astype(np.float64), axis=1)))
