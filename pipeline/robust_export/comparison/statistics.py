"""Paired statistics over seeds: how large a difference is, and how sure that it is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import permutation_test, t, ttest_rel

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """An arm minus the reference, over the same seeds.

    Attributes:
        mean: of the differences; `ci95`: Student's interval of it.
        p_t: of a paired t-test, two-sided; None where the differences do not vary at all.
        p_signs: of the sign-flip permutation test, two-sided: exact up to 16 seeds, at least 2 / 2^n with n.
        p_holm: p_t corrected by Holm's method for all arms that are compared; set by `holm`.
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
    reach = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / math.sqrt(n)
    varies = sd > 1e-12
    signs = permutation_test(
        (differences,), lambda d, axis: np.mean(d, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=100_000, rng=np.random.default_rng(0),
    )  # fmt: skip
    return Difference(
        mean, (mean - reach, mean + reach), float(ttest_rel(values, reference).pvalue) if varies else None,
        float(signs.pvalue),
    )  # fmt: skip


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values corrected for their number (Holm, Scand. J. Statist. 6, 1979).

    The i-th smallest of m is multiplied by m - i + 1, and none is smaller than the one before it. None stays.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[index] = largest
    return corrected
