"""Numerical parity: differences between the logits of two classifiers on the same inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.runtimes.classifier import Logits
from robust_export.verification.results import Bools, Floats, Parity

HUGE = float(np.finfo(np.float64).max)  # represents infinity, which JSON cannot express


def parity(reference: Logits, artifact: Logits) -> Parity:
    """Compare logits [N, K] with logits [N, K] of the same inputs, in float64.

    Non-finite logits of the artifact count as an infinite difference, HUGE.
    """
    agreement = float((~flipped(reference, artifact)).mean())
    non_finite = int((~np.isfinite(artifact)).sum())
    if non_finite:
        return Parity(HUGE, HUGE, -1.0, agreement, non_finite)
    a, b = reference.astype(np.float64), artifact.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return Parity(
        float(max_abs_differences(a, b).max()), float(np.abs(a - b).mean()), float(cosine.min()), agreement, 0
    )


def logit_scale(logits: Logits) -> float:
    """Return the median over inputs of the largest logit minus the smallest, the unit of limits on logits."""
    return float(np.median(np.ptp(logits.astype(np.float64), axis=1)))


def margins(logits: Logits) -> Floats:
    """Return the top-2 margin of each input, the largest logit minus the second largest, [N]."""
    top = np.sort(logits.astype(np.float64), axis=1)
    return np.asarray(top[:, -1] - top[:, -2])


def max_abs_differences(reference: npt.NDArray[Any], artifact: npt.NDArray[Any]) -> Floats:
    """Return the largest absolute logit difference of each input, [N]; HUGE where it is not finite."""
    difference = np.abs(reference.astype(np.float64) - artifact)
    return np.where(np.isfinite(difference).all(axis=1), difference.max(axis=1), HUGE)


def flipped(reference: npt.NDArray[Any], artifact: npt.NDArray[Any]) -> Bools:
    """Return on which inputs the predictions differ or the artifact's logits are not finite, [N]."""
    differ: Bools = (reference.argmax(axis=1) != artifact.argmax(axis=1)) | ~np.isfinite(artifact).all(axis=1)
    return differ
