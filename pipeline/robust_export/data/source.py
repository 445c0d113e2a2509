"""A data set before decoding: labelled images in two parts, and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.model_selection import train_test_split

from robust_export.errors import DataError

Labels = npt.NDArray[np.int64]

SPLIT_SEED = 0  # splits do not depend on the seed of a run
TEST_FRACTION = 0.2  # of a data set without a test split


class LazyImages(Sequence[Image.Image]):
    """Images that are decoded on access.

    Attributes:
        items: files or arrays.
        decode: returns an item as an image.
    """

    def __init__(self, items: Sequence[Any], decode: Callable[[Any], Image.Image]) -> None:
        self.items = items
        self.decode = decode

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.decode(self.items[index])


@dataclass(frozen=True)
class LabelledImages:
    """Images and their labels, int64 [N], indices into the classes of the data set."""

    images: LazyImages
    labels: Labels

    def select(self, indices: Sequence[int] | Labels) -> LabelledImages:
        """Return the images and labels at these indices."""
        chosen = [self.images.items[index] for index in indices]
        return LabelledImages(LazyImages(chosen, self.images.decode), self.labels[np.asarray(indices, int)])


@dataclass(frozen=True)
class DataSource:
    """A data set on disk."""

    name: str
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    digest: str  # SHA-256 of all images and labels
    size: int | None  # H = W of its images, None if they differ


def stratified_split(labels: Labels, fraction: float, name: str) -> tuple[Labels, Labels]:
    """Return the indices of a split that keeps the proportions of classes, the same in every call.

    Args:
        labels: int64 [N].
        fraction: of the images in the second part; at least one image per class.
        name: of the data set, for error messages.

    Returns:
        The indices of both parts, each ascending.

    Raises:
        DataError: if a class or a part has too few images.
    """
    smallest = int(np.bincount(labels)[np.unique(labels)].min())
    classes = len(np.unique(labels))
    count = max(int(np.ceil(len(labels) * fraction)), classes)
    if smallest < 2 or len(labels) - count < classes:
        raise DataError(
            f"{name}: {len(labels)} images in {classes} classes, the smallest with {smallest}, are "
            "too few to split; every class needs at least 2 images"
        )
    rest, part = train_test_split(
        np.arange(len(labels)), test_size=count, stratify=labels, random_state=SPLIT_SEED
    )
    return np.sort(rest), np.sort(part)


def digest_of(*parts: bytes) -> str:
    """Return the SHA-256 of the concatenated parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
