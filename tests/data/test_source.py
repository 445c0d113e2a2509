"""Stratified splits."""

from __future__ import annotations

import numpy as np
import pytest

from robust_export.data.source import stratified_split
from robust_export.errors import DataError


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_split_is_stratified_and_stable(fraction: float) -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])[np.random.default_rng(0).permutation(160)]
    first, second = stratified_split(labels, fraction, "name")
    assert sorted([*first, *second]) == list(range(160))
    assert np.bincount(labels[second]).tolist() == [100 * fraction, 50 * fraction, 10 * fraction]
    assert all(np.all(np.diff(indices) > 0) for indices in (first, second))
    np.testing.assert_array_equal(second, stratified_split(labels, fraction, "name")[1])


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1, 2]])
def test_too_few_images(labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"name: .*too few"):
        stratified_split(np.array(labels), 0.1, "name")
