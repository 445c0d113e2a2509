"""Differences of logits, computed once more by hand."""

from __future__ import annotations

import numpy as np
import pytest

from robust_export.verification.parity import logit_scale, parity

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
    assert found.max_abs > 1e300
    assert found.top1_agreement == 0.5


def test_the_scale_is_the_median_spread() -> None:
    assert logit_scale(A) == pytest.approx((3 + 4) / 2)
