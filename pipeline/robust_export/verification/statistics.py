"""Confidence intervals of accuracies and of the drop between two classifiers on the same images."""

from __future__ import annotations

from scipy.stats import binomtest

from robust_export.verification.results import Interval

CONFIDENCE = 0.95
MAX_SAMPLES = 10_000_000


def wilson(successes: int, n: int) -> Interval:
    """Return the Wilson score interval (95 %) of a proportion. E. B. Wilson, JASA 22 (1927)."""
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def paired_drop(lost: int, gained: int, n: int) -> Interval:
    """Return an exact interval (at least 95 %) of the drop P(lost) - P(gained) over n paired images.

    An image is `lost` if the reference model classifies it correctly and the artifact does not, `gained` in
    the opposite case. The Clopper-Pearson intervals of both at 97.5 % hold together with at least 95 %
    (Bonferroni), and so does the interval between their opposite ends. It is conservative and never empty,
    even if no pair disagrees.
    """
    confidence = 1 - (1 - CONFIDENCE) / 2
    low_lost, high_lost = binomtest(lost, n).proportion_ci(confidence, method="exact")
    low_gained, high_gained = binomtest(gained, n).proportion_ci(confidence, method="exact")
    return float(low_lost - high_gained), float(high_lost - low_gained)


def samples_needed(lost: int, gained: int, n: int, max_drop: float) -> int | None:
    """Return how many images would decide whether the drop exceeds `max_drop`, at the observed rates.

    Returns:
        `n` if it is decided already; None if MAX_SAMPLES images would not decide it, because the observed
        drop is too close to `max_drop`.
    """

    def decided(total: int) -> bool:
        scale = total / n
        low, high = paired_drop(round(lost * scale), round(gained * scale), total)
        return high <= max_drop or low > max_drop

    upper = n
    while not decided(upper):
        upper *= 2
        if upper > MAX_SAMPLES:
            return None
    lower = upper // 2 if upper > n else n
    while lower < upper:
        middle = (lower + upper) // 2
        if decided(middle):
            upper = middle
        else:
            lower = middle + 1
    return upper
