"""scikit-learn's digits, a data set that needs no download."""

from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from robust_export.data.source import (
    TEST_FRACTION,
    DataSource,
    LabelledImages,
    LazyImages,
    digest_of,
    stratified_split,
)


def open_digits() -> DataSource:
    """Open scikit-learn's digits: 1,797 grey 8x8 images of handwritten digits.

    From E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (test part).
    """
    raw = load_digits()
    images = np.rint(raw.images * (255 / 16)).astype(np.uint8)  # 16 is white
    labels = raw.target.astype(np.int64)
    digits = LabelledImages(LazyImages(images, Image.fromarray), labels)
    train, test = stratified_split(labels, TEST_FRACTION, "digits")
    classes = tuple(str(name) for name in raw.target_names)
    digest = digest_of(images.tobytes(), labels.tobytes())
    return DataSource("digits", classes, digits.select(train), digits.select(test), digest, 8)
