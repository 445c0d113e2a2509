"""A folder of images, one sub-folder a class."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torchvision.datasets as tv

from robust_export.data.image_files import open_image
from robust_export.data.source import TEST_FRACTION, Part, Pictures, Source, digest_of, stratified
from robust_export.errors import DataError


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


def training_images(path: Path) -> Source:
    """Open all images of a folder that are for training: those of train/, or all where there is no train/."""
    if not path.is_dir():
        raise DataError(f"data set folder:{path}: there is no such folder")
    root = path / "train" if (path / "train").is_dir() else path
    classes, part = _list(root)
    empty = part.select([])
    return Source(f"folder:{path}", classes, part, empty, _folder_digest(path, part), None)


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
        return digest_of(*pool.map(one, entries))
