"""Differences of logits, computed once more by hand."""

from __future__ import annotations

import numpy as np
import pytest

from robust_export.verification.parity import HUGE, flipped, gaps, logit_scale, margins, parity

A = np.array([[1.0, 2.0, 4.0], [3.0, 0.0, -1.0]], np.float32)


def test_equal_logits() -> None:
    found = parity(A, A.copy())
    assert (found.max_abs, found.mean_abs, found.top1_agreement, found.non_finite) == (0, 0, 1, 0)
    assert found.cosine == pytest.approx(1)


def test_different_logits() -> None:
    b = A.copy()
    b[0, 1] += 3  # 5 > 4: the decision flips
    found = parity(A, b)
    assert found.max_abs == 3
    assert found.mean_abs == pytest.approx(0.5)
    assert found.top1_agreement == 0.5
    cosine = (1 + 10 + 16) / np.sqrt((1 + 4 + 16) * (1 + 25 + 16))
    assert found.cosine == pytest.approx(cosine)  # of the worse of the two


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_infinite_difference(bad: float) -> None:
    b = A.copy()
    b[1, 0] = bad
    found = parity(A, b)
    assert found.non_finite == 1
    assert found.max_abs == HUGE
    assert found.top1_agreement == 0.5


def test_the_scale_is_the_median_spread() -> None:
    assert logit_scale(A) == pytest.approx((3 + 4) / 2)


def test_gaps_margins_and_flips() -> None:
    ours = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 0]], np.float32)
    theirs = np.array([[3, 1, 0.5], [0, 1, 2], [np.nan, 0, 0]], np.float32)
    np.testing.assert_array_equal(gaps(ours, theirs), [0.5, 1, HUGE])
    np.testing.assert_array_equal(margins(ours), [2, 1, 1])
    np.testing.assert_array_equal(flipped(ours, theirs), [False, True, True])
