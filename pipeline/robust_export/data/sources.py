"""Where images come from: scikit-learn's digits, torchvision's data sets, a folder."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torchvision.datasets as tv
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from robust_export.errors import DataError, unknown
from robust_export.images import open_image

Labels = npt.NDArray[np.int64]

SPLIT_SEED = 0  # the same test images whatever a run's seed
TEST_FRACTION = 0.2  # of a data set that comes without a test split

log = logging.getLogger(__name__)


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
    digest = _digest(images.tobytes(), labels.tobytes())
    return Source("digits", classes, every.select(train), every.select(test), digest, 8)


# --- torchvision ---


@dataclass(frozen=True)
class _Recipe:
    """How torchvision opens a data set, and what a person must download for it."""

    open: Callable[[Path, bool], Any]  # (folder, train)
    files: tuple[str, ...]
    archive: str
    url: str


def torchvision_set(name: str, data_dir: Path) -> Source:
    """Open a data set that torchvision reads, from files that were put into `data_dir`."""
    recipe = TORCHVISION[name]
    missing = [file for file in recipe.files if not (data_dir / file).is_file()]
    if missing:
        raise DataError(
            f"{name} is not in {data_dir.resolve()}: {missing[0]} is missing.\n"
            f"Download {recipe.archive} from {recipe.url} and unpack it there, so that it holds "
            f"{', '.join(recipe.files)}; or give the folder that has them with --data-dir."
        )
    try:
        train, test = recipe.open(data_dir, True), recipe.open(data_dir, False)
        classes = tuple(getattr(train, "classes", map(str, range(10))))
        parts = [_array_part(data, len(classes)) for data in (train, test)]
    except Exception as error:  # pickle, scipy and torchvision each have their own
        raise DataError(
            f"{name} in {data_dir} cannot be read: {error}. Download it again from {recipe.url}."
        ) from error
    digest = _digest(*(b for data in (train, test) for b in _bytes(data)))
    return Source(name, classes, parts[0], parts[1], digest, 32)


class _AnyFiles:
    """Accepts files other than the official ones once they have proved to be plain data."""

    def _check_integrity(self) -> bool:
        if not super()._check_integrity():  # type: ignore[misc]
            log.warning("%s: not the official files (MD5 differs); using them", type(self).__name__)
            for path in self.pickles():
                with path.open("rb") as file:
                    _PlainData(file, encoding="latin1").load()
        return True

    def pickles(self) -> list[Path]:
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
    """torchvision's SVHN; the digit 0 has label 0."""


class _PlainData(pickle.Unpickler):
    """Reads pickled dictionaries of arrays and refuses anything that could run code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer", "encode"})

    def find_class(self, module: str, name: str) -> Any:
        if name in self.ALLOWED and module.split(".")[0] in ("numpy", "_codecs"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it would call {module}.{name}, which no data set needs")


_CIFAR10_FILES = ("batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch")

TORCHVISION = {
    "cifar10": _Recipe(
        lambda root, train: CIFAR10(root, train=train),
        tuple(f"cifar-10-batches-py/{name}" for name in _CIFAR10_FILES),
        "cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": _Recipe(
        lambda root, train: CIFAR100(root, train=train),
        tuple(f"cifar-100-python/{name}" for name in ("meta", "train", "test")),
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "svhn": _Recipe(
        lambda root, train: SVHN(root, split="train" if train else "test"),
        ("train_32x32.mat", "test_32x32.mat"),
        "train_32x32.mat and test_32x32.mat",
        "http://ufldl.stanford.edu/housenumbers/",
    ),
}


def _array_part(data: Any, classes: int) -> Part:
    """Return a torchvision data set's own arrays as a part ([N, 32, 32, 3], SVHN's [N, 3, 32, 32])."""
    images = data.data if data.data.shape[-1] == 3 else data.data.transpose(0, 2, 3, 1)
    labels = _labels(data)
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or len(images) == 0:
        raise ValueError(f"its images are {images.dtype} {images.shape}, not uint8 (N, 32, 32, 3)")
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"its {labels.size} labels do not fit {len(images)} images of {classes} classes")
    return Part(Pictures(images, Image.fromarray), labels)


def _labels(data: Any) -> Labels:
    return np.asarray(data.targets if hasattr(data, "targets") else data.labels, dtype=np.int64)


def _bytes(data: Any) -> tuple[bytes, bytes]:
    return np.ascontiguousarray(data.data).tobytes(), _labels(data).tobytes()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


# --- folders ---


def folder(path: Path) -> Source:
    """Open a folder of class sub-folders, under train/ and val/ or by themselves.

    With train/ and val/, val is the test split; without, a fifth of every class is.
    """
    if not path.is_dir():
        raise DataError(f"data set folder:{path}: there is no such folder")
    if (path / "train").is_dir() and any(entry.is_dir() for entry in (path / "train").iterdir()):
        if not (path / "val").is_dir():
            have = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
            raise DataError(f"{path} has {', '.join(have)} and no val/; expected train/ and val/")
        classes, train = _list(path / "train")
        others, test = _list(path / "val")
        if classes != others:
            raise DataError(
                f"{path}: train/ and val/ have different classes; only in one of them: "
                f"{', '.join(sorted(set(classes) ^ set(others)))}"
            )
    else:
        classes, every = _list(path)
        rest, part = stratified(every.labels, TEST_FRACTION, str(path))
        train, test = every.select(rest), every.select(part)
    return Source(f"folder:{path}", classes, train, test, _folder_digest(path, train, test), None)


def _list(root: Path) -> tuple[tuple[str, ...], Part]:
    try:
        listing = tv.ImageFolder(root, allow_empty=True)
    except FileNotFoundError:
        raise DataError(
            f"{root} has no class sub-folders; expected {root}/<class>/<image>.png and the like"
        ) from None
    counts = np.bincount([label for _, label in listing.samples], minlength=len(listing.classes))
    empty = [name for name, count in zip(listing.classes, counts, strict=True) if count == 0]
    if not listing.samples or empty:
        where = f"class {empty[0]!r} of {root}" if listing.samples else str(root)
        raise DataError(f"{where} has no images; expected files such as .png or .jpg in it")
    if len(listing.classes) < 2:
        raise DataError(f"{root} has one class ({listing.classes[0]}); a classifier needs at least two")
    paths = [Path(file) for file, _ in listing.samples]
    labels = np.asarray([label for _, label in listing.samples], dtype=np.int64)
    return tuple(listing.classes), Part(Pictures(paths, open_image), labels)


def _folder_digest(root: Path, *parts: Part) -> str:
    def one(entry: tuple[Path, int]) -> bytes:
        file, label = entry
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        return f"{file.relative_to(root)}\0{label}\0{content}\n".encode()

    entries = [
        (file, int(label))
        for part in parts
        for file, label in zip(part.pictures.items, part.labels, strict=True)
    ]
    with ThreadPoolExecutor() as pool:
        return _digest(*pool.map(one, entries))
