"""Intervals for accuracies, and for the drop from one classifier to another on the same images."""

from __future__ import annotations

from scipy.stats import binomtest

CONFIDENCE = 0.95
MOST_SAMPLES = 10_000_000

Interval = tuple[float, float]


def wilson(successes: int, n: int) -> Interval:
    """Return the Wilson score interval (95 %) of a proportion. E. B. Wilson, JASA 22 (1927)."""
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def paired_drop(lost: int, gained: int, n: int) -> Interval:
    """Return an exact interval (at least 95 %) of the drop P(lost) - P(gained) over paired images.

    `lost` images are right for the source and wrong for the artifact, `gained` the reverse. The
    Clopper-Pearson intervals of both at 97.5 % hold together with at least 95 % (Bonferroni), and
    so does the interval between their opposite ends: conservative, and never empty, not even where
    no pair disagrees.
    """
    confidence = 1 - (1 - CONFIDENCE) / 2
    low_lost, high_lost = binomtest(lost, n).proportion_ci(confidence, method="exact")
    low_gained, high_gained = binomtest(gained, n).proportion_ci(confidence, method="exact")
    return float(low_lost - high_gained), float(high_lost - low_gained)


def samples_needed(lost: int, gained: int, n: int, max_drop: float) -> int | None:
    """Return how many images in all would decide, at the rates seen, whether the drop is too large.

    Returns:
        `n` where it is decided already; None where even ten million would not decide (the rates
        seen lie right at `max_drop`).
    """

    def decided(total: int) -> bool:
        scale = total / n
        low, high = paired_drop(round(lost * scale), round(gained * scale), total)
        return high <= max_drop or low > max_drop

    upper = n
    while not decided(upper):
        upper *= 2
        if upper > MOST_SAMPLES:
            return None
    lower = upper // 2 if upper > n else n
    while lower < upper:
        middle = (lower + upper) // 2
        if decided(middle):
            upper = middle
        else:
            lower = middle + 1
    return upper
