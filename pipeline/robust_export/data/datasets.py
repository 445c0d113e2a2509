"""Data sets by name, and their splits as float32 pixels in [0, 1] and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robust_export.data.digits import open_digits
from robust_export.data.folder import open_folder
from robust_export.data.image_files import to_bytes
from robust_export.data.source import DataSource, LabelledImages, stratified_split
from robust_export.data.torchvision_sets import TORCHVISION, open_torchvision_set
from robust_export.errors import DataError, unknown

Split = Literal["train", "val", "test"]
Batch = tuple[Tensor, Tensor]  # float32 pixels [N, C, H, W] in [0, 1], int64 labels [N]

VAL_FRACTION = 0.1
FOLDER_SIZE = 224  # pixels, default image size of a folder
CACHE_BYTES = 1 << 30  # smaller splits are decoded once and kept in memory


class HasBatches(Protocol):
    """Returns images and labels by index."""

    def batch(self, indices: Sequence[int]) -> Batch: ...


class Images(Dataset[tuple[Tensor, int]]):
    """One split: `images[i]` is (float32 [C, H, W] in [0, 1], label).

    A split of up to `CACHE_BYTES` is decoded at construction, which finds damaged files early; a larger one
    is decoded on access.

    Attributes:
        name: of the data set.
        classes: names of the classes.
        digest: SHA-256 of the data set.
        labels: int64 [N].
    """

    def __init__(self, source: DataSource, part: LabelledImages, size: int, in_chans: int) -> None:
        self.name = source.name
        self.classes = source.classes
        self.digest = source.digest
        self.labels = torch.from_numpy(part.labels.copy())
        self._part, self._size, self._in_chans = part, size, in_chans
        in_memory = len(self) * in_chans * size * size <= CACHE_BYTES
        self._cache = self._decode(range(len(self))) if in_memory else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, labels = self.batch([range(len(self))[index]])
        return pixels[0], int(labels[0])

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the images and labels at `indices`, in this order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        uint8 = self._decode(indices) if self._cache is None else self._cache[index]
        return uint8.float().div_(255), self.labels[index]

    def _decode(self, indices: Sequence[int]) -> Tensor:
        """Return uint8 pixels [N, C, H, W]."""
        images = self._part.images
        arrays = [to_bytes(images[i], self._size, self._in_chans) for i in indices]
        return torch.from_numpy(np.stack(arrays))


def load_dataset(
    spec: str,
    split: Split = "test",
    image_size: int | None = None,
    in_chans: int = 3,
    data_dir: str | Path | None = None,
    *,
    val_fraction: float = VAL_FRACTION,
) -> Images:
    """Return one split of a data set.

    Args:
        spec: `digits`, `cifar10`, `cifar100`, `svhn` or `folder:PATH`.
        split: "test" is for verification; "val" is a part of the training images.
        image_size: H = W; by default that of the data set, 224 for a folder.
        in_chans: 3 (RGB) or 1 (grey).
        data_dir: folder of torchvision's data sets, "data" by default.
        val_fraction: proportion of the training images in "val".

    Raises:
        UnknownName: for an unknown data set or split.
        DataError: if the data set is missing, damaged, or too small to split.
    """
    if split not in get_args(Split):
        raise unknown("split", split, get_args(Split))
    source = open_source(spec, data_dir or "data")
    size = image_size or source.size or FOLDER_SIZE
    return Images(source, _part(source, split, val_fraction), size, in_chans)


def load_splits(
    spec: str, image_size: int, in_chans: int, data_dir: str | Path, val_fraction: float
) -> tuple[Images, Images]:
    """Return the train and val splits; see `load_dataset`."""
    source = open_source(spec, data_dir)
    train, val = (
        Images(source, _part(source, split, val_fraction), image_size, in_chans) for split in ("train", "val")
    )
    return train, val


def open_source(spec: str, data_dir: str | Path = "data") -> DataSource:
    """Open `digits`, `cifar10`, `cifar100`, `svhn` or `folder:PATH`.

    Raises:
        UnknownName: for another name.
        DataError: if files are missing or damaged, or have no classes or labels.
    """
    name, _, path = spec.partition(":")
    if name == "folder":
        if not path:
            raise DataError("data set 'folder:' has no path; write folder:PATH")
        return open_folder(Path(path))
    if spec == "digits":
        return open_digits()
    if spec in TORCHVISION:
        return open_torchvision_set(spec, Path(data_dir))
    raise unknown("data set", spec, ["digits", *TORCHVISION, "folder:PATH"])


def batch_indices(count: int, batch_size: int, shuffle_seed: int | None) -> list[list[int]]:
    """Return the indices 0 to count - 1 in batches, in order or shuffled with a seed.

    A shuffled pass omits the last image if it would be a batch of its own: batch norm needs two images.
    """
    order: Tensor = torch.arange(count)
    if shuffle_seed is not None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(shuffle_seed))
        order = order[: shuffled_count(count, batch_size)]
    return [batch.tolist() for batch in order.split(batch_size)]


def shuffled_count(count: int, batch_size: int) -> int:
    """Return how many of `count` images a shuffled pass has."""
    return count - (count % batch_size == 1 and count > 1)


def load_batches(images: HasBatches, batches: list[list[int]], workers: int = 0) -> Iterator[Batch]:
    """Yield the batches with these indices, decoded by `workers` processes (0: by this one)."""
    if workers == 0:
        yield from map(images.batch, batches)
        return
    loader: DataLoader[Any] = DataLoader(
        _Batches(images, batches), batch_size=None, collate_fn=_identity, num_workers=workers,
        generator=torch.Generator(),  # with workers, DataLoader would draw a number from torch's global one
    )  # fmt: skip
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


class _Batches(Dataset[Batch | DataError]):
    """Batches as items, for workers. A DataError is returned, since raising in a worker changes its type."""

    def __init__(self, images: HasBatches, batches: list[list[int]]) -> None:
        self.images, self.batches = images, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch | DataError:
        try:
            return self.images.batch(self.batches[index])
        except DataError as error:
            return error


def _identity(batch: Any) -> Any:
    return batch


def _part(source: DataSource, split: str, val_fraction: float) -> LabelledImages:
    if split == "test":
        return source.test
    train, val = stratified_split(source.train.labels, val_fraction, f"{source.name}, training images")
    if len(train) == 0:
        raise DataError(f"{source.name}: val_fraction {val_fraction} leaves no images to train on")
    return source.train.select(val if split == "val" else train)
