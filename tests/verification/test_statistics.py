"""Intervals against brute force and against their published formulas."""

from __future__ import annotations

import math
from itertools import product

import pytest
from scipy.stats import multinomial

from robust_export.verification.statistics import paired_drop, samples_needed, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (353, 360)])
def test_wilson_formula(k: int, n: int) -> None:
    z, p = 1.959963984540054, k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(k, n) == pytest.approx((max(0, middle - half), min(1, middle + half)), abs=1e-12)


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.0, 0.0), (0.05, 0.0), (0.02, 0.1), (0.3, 0.3)])
@pytest.mark.parametrize("n", [1, 5, 20])
def test_paired_interval_covers_at_least_95_percent(n: int, p_lost: float, p_gained: float) -> None:
    """Sum the probability of all outcomes of n paired images whose interval has the true drop."""
    covered = 0.0
    for lost, gained in product(range(n + 1), repeat=2):
        if lost + gained <= n:
            low, high = paired_drop(lost, gained, n)
            if low <= p_lost - p_gained <= high:
                counts = [lost, gained, n - lost - gained]
                covered += multinomial.pmf(counts, n, [p_lost, p_gained, 1 - p_lost - p_gained])
    assert covered >= 0.95


def test_interval_without_disagreement() -> None:
    """With none of n images lost, the bound is 1 - (0.05 / 4)^(1/n)."""
    for n in (10, 360, 10_000):
        low, high = paired_drop(0, 0, n)
        assert high == pytest.approx(1 - (0.05 / 4) ** (1 / n), rel=1e-9)
        assert low == -high


def test_interval_is_antisymmetric_and_has_the_estimate() -> None:
    for lost, gained, n in [(3, 1, 50), (0, 7, 20), (10, 10, 20)]:
        low, high = paired_drop(lost, gained, n)
        assert paired_drop(gained, lost, n) == pytest.approx((-high, -low))
        assert low <= (lost - gained) / n <= high


@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(0, 0, 10), (0, 0, 100), (1, 1, 100), (5, 0, 100), (1, 0, 60)]
)
def test_samples_needed_decides(lost: int, gained: int, n: int) -> None:
    def decided(total: int) -> bool:
        low, high = paired_drop(round(lost * total / n), round(gained * total / n), total)
        return high <= 0.02 or low > 0.02

    needed = samples_needed(lost, gained, n, 0.02)
    assert needed is not None
    assert decided(needed)
    if needed > n:
        assert not decided(n)


def test_samples_needed_without_disagreement() -> None:
    assert samples_needed(0, 0, 360, 0.02) == 360
    assert samples_needed(0, 0, 100, 0.02) == 217


def test_rate_at_the_limit_is_never_decided() -> None:
    assert samples_needed(2, 0, 100, 0.02) is None
