"""Opens a data set by its name; scikit-learn's digits, which need no file, are here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from robust_export.data.folder import folder
from robust_export.data.source import TEST_FRACTION, Part, Pictures, Source, digest_of, stratified
from robust_export.data.torchvision_sets import TORCHVISION, torchvision_set
from robust_export.errors import DataError, unknown


def open_source(spec: str, data_dir: str | Path = "data") -> Source:
    """Open `digits`, `cifar10`, `cifar100`, `svhn` or `folder:PATH`.

    Raises:
        UnknownName: for another name.
        DataError: if the files are missing, damaged or unfit for classification.
    """
    name, _, path = spec.partition(":")
    if name == "folder":
        if not path:
            raise DataError("data set 'folder:' lacks its path; write folder:PATH")
        return folder(Path(path))
    if spec == "digits":
        return digits()
    if spec in TORCHVISION:
        return torchvision_set(spec, Path(data_dir))
    raise unknown("data set", spec, ["digits", *TORCHVISION, "folder:PATH"])


def digits() -> Source:
    """Open scikit-learn's digits: 1,797 real 8x8 grey images of handwritten digits.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (test part).
    """
    raw = load_digits()
    images = np.rint(raw.images * (255 / 16)).astype(np.uint8)  # 0..16 to 0..255
    labels = raw.target.astype(np.int64)
    every = Part(Pictures(images, Image.fromarray), labels)
    train, test = stratified(labels, TEST_FRACTION, "digits")
    classes = tuple(str(name) for name in raw.target_names)
    digest = digest_of(images.tobytes(), labels.tobytes())
    return Source("digits", classes, every.select(train), every.select(test), digest, 8)
