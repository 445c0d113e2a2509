"""Write data sets of random images in the files and formats of the real ones."""

from __future__ import annotations

import os
import pickle
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.io
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Written = tuple[Pixels, list[int]]  # images [N, 32, 32, 3], labels


class Python2Pickler(pickle._Pickler):
    """Pickles strings as Python 2 did for CIFAR's files."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self: Any, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def python2(value: object) -> bytes:
    buffer = BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.", b"numpy.core.")


def rows(images: Pixels) -> Pixels:
    """Return [N, 32, 32, 3] as CIFAR's rows [N, 3072]: all red, all green, all blue values."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(-1, 3072)


def write_cifar10(root: Path, train: Written, test: Written) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    batches = {"test_batch": test}
    for i in range(5):
        batches[f"data_batch_{i + 1}"] = (train[0][i::5], train[1][i::5])
    for name, (images, labels) in batches.items():
        batch = {
            "batch_label": name,
            "labels": labels,
            "data": rows(images),
            "filenames": ["x"] * len(labels),
        }
        (folder / name).write_bytes(python2(batch))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(python2({"label_names": names, "num_vis": 3072}))


def write_cifar100(root: Path, train: Written, test: Written) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name, (images, labels) in {"train": train, "test": test}.items():
        coarse = [label // 5 for label in labels]
        batch = {"batch_label": name, "fine_labels": labels, "coarse_labels": coarse, "data": rows(images)}
        (folder / name).write_bytes(python2(batch))
    names = [f"class {i}" for i in range(100)]
    (folder / "meta").write_bytes(python2({"fine_label_names": names, "coarse_label_names": ["x"] * 20}))


def write_svhn(root: Path, train: Written, test: Written) -> None:
    """Write SVHN's files, where the digit 0 has label 10."""
    for name, (images, labels) in {"train": train, "test": test}.items():
        y = np.array([[label or 10] for label in labels], np.uint8)
        scipy.io.savemat(root / f"{name}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": y})


@dataclass(frozen=True)
class Case:
    """A torchvision data set, with what error messages must contain."""

    classes: int
    files: tuple[str, ...]
    archive: str
    url: str
    write: Callable[[Path, Written, Written], None]


TORONTO = "https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR10 = tuple(
    f"cifar-10-batches-py/{name}"
    for name in ("batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
)
CIFAR100 = tuple(f"cifar-100-python/{name}" for name in ("meta", "train", "test"))
SVHN = ("train_32x32.mat", "test_32x32.mat")
STANFORD = "http://ufldl.stanford.edu/housenumbers/"
SETS = {
    "cifar10": Case(10, CIFAR10, "cifar-10-python.tar.gz", TORONTO, write_cifar10),
    "cifar100": Case(100, CIFAR100, "cifar-100-python.tar.gz", TORONTO, write_cifar100),
    "svhn": Case(10, SVHN, "train_32x32.mat and test_32x32.mat", STANFORD, write_svhn),
}
FILES = [(name, file) for name, case in SETS.items() for file in case.files]
PICKLES = [(name, file) for name, file in FILES if name != "svhn"]

INVALID: dict[str, Callable[[Written], Written]] = {
    "label missing": lambda data: (data[0], data[1][:-1]),
    "extra label": lambda data: (data[0], [*data[1], 0]),
    "unknown class": lambda data: (data[0], [label or 11 for label in data[1]]),
    "float pixels": lambda data: (data[0].astype(np.float64), data[1]),
    "no images": lambda data: (data[0][:0], []),
}


def write(name: str, root: Path, seed: int = 0) -> tuple[Written, Written]:
    """Write a data set with three training images and one test image per class; return both parts."""
    rng, classes = np.random.default_rng(seed), SETS[name].classes
    train, test = (
        (rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), (rng.permutation(n) % classes).tolist())
        for n in (3 * classes, classes)
    )
    SETS[name].write(root, train, test)
    return train, test


def pairs(images: Pixels, labels: list[int]) -> Counter[tuple[bytes, int]]:
    return Counter(zip((image.tobytes() for image in images), labels, strict=True))


def write_folder(
    root: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8)
) -> dict[str, list[Pixels]]:
    """Write {class: number} PNGs of (height, width) into sub-folders; return the images by class."""
    written: dict[str, list[Pixels]] = {}
    for name, count in counts.items():
        rng = np.random.default_rng(sum(name.encode()) + sum(root.name.encode()))
        (root / name).mkdir(parents=True, exist_ok=True)
        written[name] = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]
        for i, array in enumerate(written[name]):
            Image.fromarray(array).save(root / name / f"{i:03}.png")
    return written


class Evil:
    """Calls a function when it is unpickled."""

    def __init__(self, call: Callable[..., Any], *args: object) -> None:
        self.call = (call, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


PAYLOADS: dict[str, Callable[[Path], Evil]] = {  # each makes the file or folder "flag.npy"
    "system": lambda flag: Evil(os.system, f"mkdir {flag}"),
    "mkdir": lambda flag: Evil(os.mkdir, str(flag)),
    "eval": lambda flag: Evil(eval, f"__import__('os').mkdir({str(flag)!r})"),
    "method": lambda flag: Evil(Path.mkdir, Evil(Path, str(flag))),
    "numpy": lambda flag: Evil(np.save, str(flag), 0),
}
