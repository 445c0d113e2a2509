"""The batches of a training epoch, in a seeded order, with extra images mixed in at a ratio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Generator

from robust_export.data.datasets import Batch, Images, batch_count, batch_indices, load_batches
from robust_export.data.folder import training_images
from robust_export.errors import DataError, InvalidValue
from robust_export.utils.sharded_rng import ShardedGenerator

EXTRA_SEED = 1_000_033  # a multiple of it sets the draw of extra images apart from the order of the others


class Feed:
    """The training images of a run, batch by batch.

    An epoch is one pass over the data set's own images. With extra images every full batch has
    round(ratio * batch_size) of them, drawn with replacement: a large synthetic set is sampled, a small one
    repeated. The order depends on the seed and on nothing else.

    Args:
        extra: more images of the same classes, or None.
        ratio: their part of a batch, in [0, 1).
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        workers: int = 0,
        extra: Images | None = None,
        ratio: float = 0.0,
    ) -> None:
        self.images, self.extra, self.workers = images, extra, workers
        self.extra_per_batch = round(ratio * batch_size) if extra is not None else 0
        self.own_per_batch = batch_size - self.extra_per_batch
        if self.own_per_batch < 1:
            raise InvalidValue(
                f"data.extra_ratio {ratio:g} leaves no place for the data set's own images in a batch of "
                f"{batch_size}; give a smaller one"
            )

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        return batch_count(self.images, self.own_per_batch)

    def batch_size_at(self, step: int) -> int:
        """Return how many images batch number `step` has."""
        total = len(self.images) - (len(self.images) % self.own_per_batch == 1 and len(self.images) > 1)
        return min(self.own_per_batch, total - step * self.own_per_batch) + self.extra_per_batch

    def epoch(self, seed: int, skip: int = 0, share: ShardedGenerator | None = None) -> Iterator[Batch]:
        """Yield the batches of the epoch with this seed, from number `skip` on.

        Args:
            share: says which part of each batch is this process's; None gives whole batches.
        """
        wanted = batch_indices(len(self.images), self.own_per_batch, seed)
        if self.extra is not None:
            generator = Generator().manual_seed(seed * EXTRA_SEED % 2**63)
            shape = (len(wanted), self.extra_per_batch)
            draws = torch.randint(len(self.extra), shape, generator=generator) + len(self.images)
            wanted = [[*chunk, *more] for chunk, more in zip(wanted, draws.tolist(), strict=True)]
        if share is not None:
            wanted = [chunk[share.for_batch(len(chunk)).shard] for chunk in wanted]
        yield from load_batches(self, wanted[skip:], self.workers)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the images at `indices`; from len(images) on they are the extra ones."""
        count = len(self.images)
        own = [i for i in indices if i < count]
        more = [i - count for i in indices if i >= count]
        if self.extra is None or not more:
            return self.images.batch(own)
        theirs = self.extra.batch(more)
        if not own:  # the part of one of several processes
            return theirs
        pixels, labels = self.images.batch(own)
        return torch.cat([pixels, theirs[0]]), torch.cat([labels, theirs[1]])


def load_extra_images(spec: str, images: Images, image_size: int, in_chans: int) -> Images:
    """Return the extra training images of `folder:PATH`, labelled with the classes of `images`.

    Every class sub-folder is named as a class of the data set; a class may be missing.

    Raises:
        InvalidValue: if `spec` is no folder.
        DataError: if the folder is missing, empty, or has classes that the data set lacks.
    """
    kind, _, path = spec.partition(":")
    if kind != "folder" or not path:
        raise InvalidValue(f"data.extra is {spec!r}; expected folder:PATH, with one sub-folder a class")
    source = training_images(Path(path))
    unknown = [name for name in source.classes if name not in images.classes]
    if unknown:
        raise DataError(
            f"extra images of {spec} have classes that {images.name} lacks: {', '.join(unknown[:5])}; "
            f"name the sub-folders as its classes: {', '.join(images.classes[:20])}"
        )
    index = torch.tensor([images.classes.index(name) for name in source.classes])
    extra = Images(source, source.train, image_size, in_chans)
    extra.labels = index[extra.labels]
    return extra
