"""Paired statistics over seeds: differences of two arms, their intervals and p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import permutation_test, t, ttest_rel

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Accuracy of an arm minus that of the reference arm, over the same seeds.

    Attributes:
        mean: mean difference; `ci95`: its Student interval.
        p_t: p-value of the paired t-test, two-sided; None if all differences are equal.
        p_signs: p-value of the sign-flip permutation test, two-sided; exact up to 16 seeds, at least 2 / 2^n
            for n seeds.
        p_holm: p_t corrected for the number of arms by `holm`.
    """

    mean: float
    ci95: tuple[float, float]
    p_t: float | None
    p_signs: float
    p_holm: float | None = None


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (n - 1) of two or more values."""
    return float(np.mean(values)), float(np.std(values, ddof=1))


def paired(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Compare two arms seed by seed; both have the same two or more seeds, in the same order."""
    differences = np.asarray(values, float) - np.asarray(reference, float)
    n, mean, sd = len(differences), float(differences.mean()), float(differences.std(ddof=1))
    half_width = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / math.sqrt(n)
    varies = sd > 1e-12
    signs = permutation_test(
        (differences,), lambda d, axis: np.mean(d, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=100_000, rng=np.random.default_rng(0),
    )  # fmt: skip
    p_t = float(ttest_rel(values, reference).pvalue) if varies else None
    return Difference(mean, (mean - half_width, mean + half_width), p_t, float(signs.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number (Holm, Scand. J. Statist. 6, 1979); None stays None.

    The i-th smallest of m is multiplied by m - i + 1, and raised to the previous one if it is smaller.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[index] = largest
    return corrected
