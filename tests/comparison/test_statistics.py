"""Paired statistics against values computed by hand and by enumeration."""

from __future__ import annotations

import itertools
import math

import pytest

from robust_export.comparison.statistics import holm, mean_sd, paired

ARM, REFERENCE = [0.62, 0.60, 0.66, 0.61, 0.65], [0.58, 0.59, 0.60, 0.61, 0.58]


def test_mean_and_deviation() -> None:
    mean, sd = mean_sd([1.0, 2.0, 6.0])
    assert mean == 3.0
    assert sd == pytest.approx(math.sqrt((4 + 1 + 9) / 2))


def test_student_interval() -> None:
    difference = paired(ARM, REFERENCE)
    d = [a - b for a, b in zip(ARM, REFERENCE, strict=True)]
    mean = sum(d) / 5
    sd = math.sqrt(sum((x - mean) ** 2 for x in d) / 4)
    half_width = 2.776445105 * sd / math.sqrt(5)  # Student's t, 4 degrees of freedom, 97.5 %
    assert difference.mean == pytest.approx(mean)
    assert difference.ci95 == pytest.approx((mean - half_width, mean + half_width), abs=1e-8)


def test_t_test_agrees_with_the_interval() -> None:
    """p is below 0.05 if and only if the interval does not contain 0."""
    for shift in (0.0, 0.01, 0.02, 0.05):
        difference = paired([x + shift - 0.03 for x in ARM], REFERENCE)
        assert difference.p_t is not None
        assert (difference.p_t < 0.05) == (difference.ci95[0] > 0 or difference.ci95[1] < 0)


@pytest.mark.parametrize("arm", [ARM, [0.60, 0.55, 0.63, 0.60, 0.59], [0.7] * 5])
def test_sign_flip_test_enumerates_signs(arm: list[float]) -> None:
    d = [a - b for a, b in zip(arm, REFERENCE, strict=True)]
    sums = [
        sum(s * x for s, x in zip(signs, d, strict=True)) for signs in itertools.product((1, -1), repeat=5)
    ]
    at_least = sum(abs(total) >= abs(sum(d)) - 1e-12 for total in sums) / len(sums)
    assert paired(arm, REFERENCE).p_signs == pytest.approx(at_least)


def test_equal_differences() -> None:
    same = paired(REFERENCE, REFERENCE)
    assert (same.mean, same.ci95, same.p_t, same.p_signs) == (0.0, (0.0, 0.0), None, 1.0)
    assert paired([0.5, 0.75], [0.25, 0.5]).p_t is None


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; 2 x 0.03; at least as large as that
        ([0.5, 0.4], [0.8, 0.8]),
        ([0.9, 0.9, 0.001], [1.0, 1.0, 0.003]),
        ([None, 0.04], [None, 0.04]),
        ([], []),
    ],
)
def test_holm(p_values: list[float | None], expected: list[float | None]) -> None:
    assert holm(p_values) == [p if p is None else pytest.approx(p) for p in expected]
