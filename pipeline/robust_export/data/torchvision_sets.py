"""CIFAR-10, CIFAR-100 and SVHN from downloaded files, read by torchvision."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets as tv
from PIL import Image

from robust_export.data.source import DataSource, LabelledImages, Labels, LazyImages, digest_of
from robust_export.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _DataSet:
    """How torchvision opens a data set, and what to download for it."""

    open: Callable[[Path, bool], Any]  # (folder, train)
    files: tuple[str, ...]
    archive: str
    url: str


def open_torchvision_set(name: str, data_dir: Path) -> DataSource:
    """Open the data set `name` (a key of `TORCHVISION`) from its files in `data_dir`.

    Raises:
        DataError: if files are missing or damaged; the message says what to download.
    """
    entry = TORCHVISION[name]
    missing = [file for file in entry.files if not (data_dir / file).is_file()]
    if missing:
        raise DataError(
            f"{name} is not in {data_dir.resolve()}: {missing[0]} is missing.\n"
            f"Download {entry.archive} from {entry.url} and unpack it there (expected files: "
            f"{', '.join(entry.files)}), or give the folder that has them with --data-dir."
        )
    try:
        train, test = entry.open(data_dir, True), entry.open(data_dir, False)
        classes = tuple(getattr(train, "classes", map(str, range(10))))
        parts = [_array_part(data, len(classes)) for data in (train, test)]
    except Exception as error:  # pickle, scipy and torchvision raise different types
        raise DataError(
            f"{name} in {data_dir} cannot be read: {error}. Download it again from {entry.url}."
        ) from error
    digest = digest_of(*(part for data in (train, test) for part in _bytes(data)))
    return DataSource(name, classes, parts[0], parts[1], digest, 32)


class _AnyFiles:
    """Accepts files that differ from the official ones if their pickles hold plain data only."""

    def _check_integrity(self) -> bool:
        if not super()._check_integrity():  # type: ignore[misc]
            log.warning("%s: these are not the official files (MD5 differs); using them", type(self).__name__)
            for path in self.pickles():
                with path.open("rb") as file:
                    _PlainData(file, encoding="latin1").load()
        return True

    def pickles(self) -> list[Path]:
        """Return the pickle files of the data set."""
        return []


class _CIFAR(_AnyFiles):
    root: str
    base_folder: str
    train_list: list[list[str]]
    test_list: list[list[str]]
    meta: dict[str, str]

    def pickles(self) -> list[Path]:
        folder = Path(self.root) / self.base_folder
        names = [entry[0] for entry in (*self.train_list, *self.test_list)]
        return [folder / name for name in (*names, self.meta["filename"])]

    def _load_meta(self) -> None:
        with (Path(self.root) / self.base_folder / self.meta["filename"]).open("rb") as file:
            self.classes = _PlainData(file, encoding="latin1").load()[self.meta["key"]]


class CIFAR10(_CIFAR, tv.CIFAR10):  # type: ignore[misc]
    """torchvision's CIFAR-10."""


class CIFAR100(_CIFAR, tv.CIFAR100):  # type: ignore[misc]
    """torchvision's CIFAR-100."""


class SVHN(_AnyFiles, tv.SVHN):  # type: ignore[misc]
    """torchvision's SVHN, where the digit 0 has label 0."""


class _PlainData(pickle.Unpickler):
    """Unpickles dictionaries of arrays; raises UnpicklingError for anything that could run code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer", "encode"})

    def find_class(self, module: str, name: str) -> Any:
        if name in self.ALLOWED and module.split(".")[0] in ("numpy", "_codecs"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it would call {module}.{name}, which no data set needs")


_CIFAR10_FILES = ("batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch")

TORCHVISION = {
    "cifar10": _DataSet(
        lambda root, train: CIFAR10(root, train=train),
        tuple(f"cifar-10-batches-py/{name}" for name in _CIFAR10_FILES),
        "cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": _DataSet(
        lambda root, train: CIFAR100(root, train=train),
        tuple(f"cifar-100-python/{name}" for name in ("meta", "train", "test")),
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "svhn": _DataSet(
        lambda root, train: SVHN(root, split="train" if train else "test"),
        ("train_32x32.mat", "test_32x32.mat"),
        "train_32x32.mat and test_32x32.mat",
        "http://ufldl.stanford.edu/housenumbers/",
    ),
}


def _array_part(data: Any, classes: int) -> LabelledImages:
    """Return the images and labels of a torchvision data set: [N, 32, 32, 3], for SVHN [N, 3, 32, 32].

    Raises:
        ValueError: for images of another shape or dtype, or labels that do not match.
    """
    images = data.data if data.data.shape[-1] == 3 else data.data.transpose(0, 2, 3, 1)
    labels = _labels(data)
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or len(images) == 0:
        raise ValueError(f"its images are {images.dtype} {images.shape}; expected uint8 (N, 32, 32, 3)")
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"its {labels.size} labels do not fit {len(images)} images of {classes} classes")
    return LabelledImages(LazyImages(images, Image.fromarray), labels)


def _labels(data: Any) -> Labels:
    return np.asarray(data.targets if hasattr(data, "targets") else data.labels, dtype=np.int64)


def _bytes(data: Any) -> tuple[bytes, bytes]:
    return np.ascontiguousarray(data.data).tobytes(), _labels(data).tobytes()
