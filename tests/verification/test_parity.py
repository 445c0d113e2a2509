"""Parity against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from robust_export.verification.parity import (
    HUGE,
    flipped,
    logit_scale,
    margins,
    max_abs_differences,
    parity,
)

A = np.array([[1.0, 2.0, 4.0], [3.0, 0.0, -1.0]], np.float32)


def test_equal_logits() -> None:
    result = parity(A, A.copy())
    assert (result.max_abs, result.mean_abs, result.top1_agreement, result.non_finite) == (0, 0, 1, 0)
    assert result.cosine == pytest.approx(1)


def test_different_logits() -> None:
    b = A.copy()
    b[0, 1] += 3  # 5 > 4: the prediction flips
    result = parity(A, b)
    assert result.max_abs == 3
    assert result.mean_abs == pytest.approx(0.5)
    assert result.top1_agreement == 0.5
    cosine = (1 + 10 + 16) / np.sqrt((1 + 4 + 16) * (1 + 25 + 16))
    assert result.cosine == pytest.approx(cosine)  # the smaller one of the two inputs


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_logits_are_an_infinite_difference(bad: float) -> None:
    b = A.copy()
    b[1, 0] = bad
    result = parity(A, b)
    assert result.non_finite == 1
    assert result.max_abs == HUGE
    assert result.top1_agreement == 0.5


def test_logit_scale_is_the_median_spread() -> None:
    assert logit_scale(A) == pytest.approx((3 + 4) / 2)


def test_differences_margins_and_flips() -> None:
    reference = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 0]], np.float32)
    artifact = np.array([[3, 1, 0.5], [0, 1, 2], [np.nan, 0, 0]], np.float32)
    np.testing.assert_array_equal(max_abs_differences(reference, artifact), [0.5, 1, HUGE])
    np.testing.assert_array_equal(margins(reference), [2, 1, 1])
    np.testing.assert_array_equal(flipped(reference, artifact), [False, True, True])
