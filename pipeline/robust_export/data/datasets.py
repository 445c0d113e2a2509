"""The splits of a data set, ready for a network: float32 pixels in [0, 1] and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robust_export.data.image_files import to_bytes
from robust_export.data.source import Part, Source, stratified
from robust_export.data.sources import open_source
from robust_export.errors import DataError, unknown

Split = Literal["train", "val", "test"]
Batch = tuple[Tensor, Tensor]  # float32 pixels [N, C, H, W] in [0, 1], int64 labels [N]

VAL_FRACTION = 0.1
FOLDER_SIZE = 224  # pixels, for a folder whose images have no size of their own
CACHE_BYTES = 1 << 30  # a split that is smaller than this is decoded once and kept in memory


class Batched(Protocol):
    """What gives batches of images by their indices."""

    def batch(self, indices: Sequence[int]) -> Batch: ...


class Images(Dataset[tuple[Tensor, int]]):
    """One split: `images[i]` is (float32 [C, H, W] in [0, 1], label).

    A split that fits in memory is decoded at once, so that a damaged file is found before any work
    is done on the others; a larger one is decoded as it is read.
    """

    def __init__(self, source: Source, part: Part, size: int, in_chans: int) -> None:
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
        """Return the images and labels at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        raw = self._decode(indices) if self._cache is None else self._cache[chosen]
        return raw.float().div_(255), self.labels[chosen]

    def _decode(self, indices: Sequence[int]) -> Tensor:
        pictures = self._part.pictures
        arrays = [to_bytes(pictures[i], self._size, self._in_chans) for i in indices]
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
    """Return one split of `digits`, `cifar10`, `cifar100`, `svhn` or `folder:PATH`.

    Args:
        split: "test" is the one that verification uses; "val" is split off the training images.
        image_size: H = W; the data set's own by default (224 for a folder).
        in_chans: 3 (RGB, grey images repeated) or 1 (grey).
        data_dir: where torchvision's data sets lie, "data" by default.

    Raises:
        UnknownName: for an unknown data set or split.
        DataError: if it is missing, damaged, or too small to split.
    """
    if split not in get_args(Split):
        raise unknown("split", split, get_args(Split))
    source = open_source(spec, data_dir or "data")
    size = image_size or source.size or FOLDER_SIZE
    return Images(source, _part(source, split, val_fraction), size, in_chans)


def load_splits(
    spec: str, image_size: int, in_chans: int, data_dir: str | Path, val_fraction: float
) -> tuple[Images, Images]:
    """Return the train and val splits, opening the source once."""
    source = open_source(spec, data_dir)
    train, val = (
        Images(source, _part(source, split, val_fraction), image_size, in_chans) for split in ("train", "val")
    )
    return train, val


def batches(
    images: Images, batch_size: int, *, shuffle_seed: int | None = None, workers: int = 0
) -> Iterator[Batch]:
    """Yield the split batch by batch, in order, or in the order that `shuffle_seed` gives."""
    yield from load_batches(images, batch_indices(len(images), batch_size, shuffle_seed), workers)


def batch_indices(count: int, batch_size: int, shuffle_seed: int | None) -> list[list[int]]:
    """Return the indices 0 to count - 1 batch by batch, in order, or in the order that the seed gives.

    A shuffled pass leaves out the last images where a single one would be over: batch norm has no
    variance of one.
    """
    order: Tensor = torch.arange(count)
    if shuffle_seed is not None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(shuffle_seed))
        if len(order) % batch_size == 1 and len(order) > 1:
            order = order[:-1]
    return [chunk.tolist() for chunk in order.split(batch_size)]


def load_batches(images: Batched, wanted: list[list[int]], workers: int = 0) -> Iterator[Batch]:
    """Yield the batches of these indices, fetched here or by so many processes."""
    if workers == 0:
        yield from map(images.batch, wanted)
        return
    loader: DataLoader[Any] = DataLoader(
        _Chunks(images, wanted), batch_size=None, collate_fn=_as_is, num_workers=workers,
        generator=torch.Generator(),  # its own: torch's would be one number further with workers than without
    )  # fmt: skip
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def batch_count(images: Images, batch_size: int) -> int:
    """Return how many batches a shuffled pass has."""
    return -(-(len(images) - (len(images) % batch_size == 1 and len(images) > 1)) // batch_size)


class _Chunks(Dataset[Batch | DataError]):
    """Whole batches, so that a worker fetches one at once; an error is handed over as it is."""

    def __init__(self, images: Batched, chunks: list[list[int]]) -> None:
        self.images, self.chunks = images, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> Batch | DataError:
        try:
            return self.images.batch(self.chunks[index])
        except DataError as error:
            return error


def _as_is(batch: Any) -> Any:
    return batch


def _part(source: Source, split: str, val_fraction: float) -> Part:
    if split == "test":
        return source.test
    rest, val = stratified(source.train.labels, val_fraction, f"{source.name}, training images")
    if len(rest) == 0:
        raise DataError(f"{source.name}: val_fraction {val_fraction} leaves nothing to train on")
    return source.train.select(val if split == "val" else rest)
