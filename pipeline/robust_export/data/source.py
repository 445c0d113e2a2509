"""What a data set is, wherever it comes from: labelled images in two parts, and their digest."""

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

SPLIT_SEED = 0  # the same test images whatever a run's seed
TEST_FRACTION = 0.2  # of a data set that comes without a test split


class Pictures(Sequence[Image.Image]):
    """Images that are decoded when they are asked for."""

    def __init__(self, items: Sequence[Any], decode: Callable[[Any], Image.Image]) -> None:
        self.items = items
        self.decode = decode

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.decode(self.items[index])


@dataclass(frozen=True)
class Part:
    """Images with their labels, int64 [N], each an index into the source's classes."""

    pictures: Pictures
    labels: Labels

    def select(self, indices: Sequence[int] | Labels) -> Part:
        chosen = [self.pictures.items[index] for index in indices]
        return Part(Pictures(chosen, self.pictures.decode), self.labels[np.asarray(indices, int)])


@dataclass(frozen=True)
class Source:
    """A data set as it lies on disk."""

    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part
    digest: str  # SHA-256 of every image and label
    size: int | None  # H = W of its images, None where they differ


def stratified(labels: Labels, fraction: float, what: str) -> tuple[Labels, Labels]:
    """Return the indices of a seeded two-way split, (rest, fraction), both in ascending order."""
    smallest = int(np.bincount(labels)[np.unique(labels)].min())
    classes = len(np.unique(labels))
    wanted = max(int(np.ceil(len(labels) * fraction)), classes)
    if smallest < 2 or len(labels) - wanted < classes:
        raise DataError(
            f"{what}: {len(labels)} images in {classes} classes, the smallest of {smallest}, are "
            "too few to split; every class needs at least 2 images, and more is better"
        )
    rest, part = train_test_split(
        np.arange(len(labels)), test_size=wanted, stratify=labels, random_state=SPLIT_SEED
    )
    return np.sort(rest), np.sort(part)


def digest_of(*parts: bytes) -> str:
    """Return the SHA-256 of the parts, one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
