"""scikit-learn's digits as a data source."""

from __future__ import annotations

from collections import Counter

import numpy as np
from sklearn.datasets import load_digits

from robust_export.data.digits import open_digits


def test_digits_are_those_of_scikit_learn() -> None:
    """Train and test have all 1,797 images once, with their labels, to 1/255."""
    source, raw = open_digits(), load_digits()
    opened = Counter(
        (np.rint(np.asarray(part.images[i]) * (16 / 255)).tobytes(), int(part.labels[i]))
        for part in (source.train, source.test)
        for i in range(len(part.images))
    )
    assert opened == Counter(zip((image.tobytes() for image in raw.images), raw.target.tolist(), strict=True))
    assert opened.total() == 1797
    assert source.classes == tuple("0123456789")
    assert source.size == 8


def test_digest_is_stable() -> None:
    """Bundles record the digest; it changes only with the data."""
    assert open_digits().digest == "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382"
