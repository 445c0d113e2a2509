"""A folder of images with one sub-folder per class."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torchvision.datasets as tv

from robust_export.data.image_files import open_image
from robust_export.data.source import (
    TEST_FRACTION,
    DataSource,
    LabelledImages,
    LazyImages,
    digest_of,
    stratified_split,
)
from robust_export.errors import DataError


def open_folder(path: Path) -> DataSource:
    """Open a folder that has class sub-folders, or train/ and val/ that have them.

    The test split is val/, or else a fifth of every class.

    Raises:
        DataError: if the folder is missing, or has no or different classes in train/ and val/.
    """
    if not path.is_dir():
        raise DataError(f"data set folder:{path}: no such folder")
    if (path / "train").is_dir() and any(entry.is_dir() for entry in (path / "train").iterdir()):
        if not (path / "val").is_dir():
            folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
            raise DataError(f"{path} has {', '.join(folders)} and no val/; expected train/ and val/")
        classes, train = _list(path / "train")
        val_classes, test = _list(path / "val")
        if classes != val_classes:
            raise DataError(
                f"{path}: train/ and val/ have different classes; only in one of them: "
                f"{', '.join(sorted(set(classes) ^ set(val_classes)))}"
            )
    else:
        classes, everything = _list(path)
        train_indices, test_indices = stratified_split(everything.labels, TEST_FRACTION, str(path))
        train, test = everything.select(train_indices), everything.select(test_indices)
    return DataSource(f"folder:{path}", classes, train, test, _folder_digest(path, train, test), None)


def open_training_folder(path: Path) -> DataSource:
    """Open the images in train/ of a folder, or all images if it has no train/, with an empty test part."""
    if not path.is_dir():
        raise DataError(f"data set folder:{path}: no such folder")
    root = path / "train" if (path / "train").is_dir() else path
    classes, train = _list(root)
    return DataSource(f"folder:{path}", classes, train, train.select([]), _folder_digest(path, train), None)


def _list(root: Path) -> tuple[tuple[str, ...], LabelledImages]:
    """Return the class names and the images of a folder of class sub-folders."""
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
    return tuple(listing.classes), LabelledImages(LazyImages(paths, open_image), labels)


def _folder_digest(root: Path, *parts: LabelledImages) -> str:
    """Return the SHA-256 of the files' paths, labels and contents."""

    def digest_line(entry: tuple[Path, int]) -> bytes:
        file, label = entry
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        return f"{file.relative_to(root)}\0{label}\0{content}\n".encode()

    entries = [
        (file, int(label))
        for part in parts
        for file, label in zip(part.images.items, part.labels, strict=True)
    ]
    with ThreadPoolExecutor() as pool:
        return digest_of(*pool.map(digest_line, entries))
