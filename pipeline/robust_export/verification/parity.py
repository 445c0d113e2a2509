"""Numerical parity: how far an artifact's logits are from the source's on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.runtimes.classifier import Logits

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

HUGE = float(np.finfo(np.float64).max)  # stands for infinity, which JSON has not


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

    Non-finite logits count as an infinite difference, HUGE.
    """
    agreement = float((~flipped(source, artifact)).mean())
    non_finite = int((~np.isfinite(artifact)).sum())
    if non_finite:
        return Parity(HUGE, HUGE, -1.0, agreement, non_finite)
    a, b = source.astype(np.float64), artifact.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return Parity(float(gaps(a, b).max()), float(np.abs(a - b).mean()), float(cosine.min()), agreement, 0)


def logit_scale(source: Logits) -> float:
    """Return the unit in which gaps are judged: the median spread of an input's logits.

    The spread is the largest logit minus the smallest; the median is over inputs.
    """
    return float(np.median(np.ptp(source.astype(np.float64), axis=1)))


def margins(logits: Logits) -> Floats:
    """Return each input's largest logit minus its second largest, [N]."""
    top = np.sort(logits.astype(np.float64), axis=1)
    return np.asarray(top[:, -1] - top[:, -2])


def gaps(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> Floats:
    """Return each input's largest |difference| of a logit, [N]; HUGE where one is not finite."""
    difference = np.abs(ours.astype(np.float64) - theirs)
    return np.where(np.isfinite(difference).all(axis=1), difference.max(axis=1), HUGE)


def flipped(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> Bools:
    """Return on which inputs the two decide differently, [N]."""
    turned: Bools = (ours.argmax(axis=1) != theirs.argmax(axis=1)) | ~np.isfinite(theirs).all(axis=1)
    return turned
