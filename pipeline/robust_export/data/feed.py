"""The batches of a training epoch, in a seeded order, with extra images mixed in at a ratio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Generator

from robust_export.data.datasets import Batch, Images, batch_indices, load_batches, shuffled_count
from robust_export.data.folder import open_training_folder
from robust_export.errors import DataError, InvalidValue
from robust_export.utils.sharded_rng import ShardedGenerator

EXTRA_SEED = 1_000_033  # the epoch's seed times this selects extra images, independently of the order


class Feed:
    """The training images of a run, batch by batch.

    An epoch is one pass over the data set's own images. With extra images, every full batch has
    round(ratio * batch_size) of them, sampled with replacement. The order depends only on the seed.

    Args:
        images: the data set's own training images.
        batch_size: of a full batch, extra images included.
        workers: processes that decode images.
        extra: further images of the same classes, or None.
        ratio: proportion of extra images in a full batch, in [0, 1).

    Attributes:
        extra_per_batch: number of extra images in a batch.
        own_per_batch: number of the data set's own images in a full batch.
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
                f"data.extra_ratio {ratio:g} leaves none of the data set's own images in a batch of "
                f"{batch_size}; give a smaller one"
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-shuffled_count(len(self.images), self.own_per_batch) // self.own_per_batch)

    def batch_size_at(self, step: int) -> int:
        """Return the number of images in batch `step` of an epoch."""
        total = shuffled_count(len(self.images), self.own_per_batch)
        return min(self.own_per_batch, total - step * self.own_per_batch) + self.extra_per_batch

    def epoch(self, seed: int, skip: int = 0, shards: ShardedGenerator | None = None) -> Iterator[Batch]:
        """Yield the batches of the epoch with this seed, without the first `skip`.

        Args:
            seed: of the order and the selection of extra images.
            skip: number of batches to leave out.
            shards: selects this process's shard of each batch; None yields whole batches.
        """
        batches = batch_indices(len(self.images), self.own_per_batch, seed)
        if self.extra is not None:
            generator = Generator().manual_seed(seed * EXTRA_SEED % 2**63)
            shape = (len(batches), self.extra_per_batch)
            sample = torch.randint(len(self.extra), shape, generator=generator) + len(self.images)
            batches = [[*own, *extra] for own, extra in zip(batches, sample.tolist(), strict=True)]
        if shards is not None:
            batches = [batch[shards.for_batch(len(batch)).shard] for batch in batches]
        yield from load_batches(self, batches[skip:], self.workers)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the images and labels at `indices`; from len(images) on they are the extra ones."""
        count = len(self.images)
        own = [i for i in indices if i < count]
        extra = [i - count for i in indices if i >= count]
        if self.extra is None or not extra:
            return self.images.batch(own)
        extra_pixels, extra_labels = self.extra.batch(extra)
        if not own:  # a shard can consist of extra images only
            return extra_pixels, extra_labels
        pixels, labels = self.images.batch(own)
        return torch.cat([pixels, extra_pixels]), torch.cat([labels, extra_labels])


def load_extra_images(spec: str, images: Images, image_size: int, in_chans: int) -> Images:
    """Return the extra training images of `folder:PATH`, with the label indices of `images`.

    Each sub-folder has the name of a class of the data set; classes may be missing.

    Raises:
        InvalidValue: if `spec` is not a folder.
        DataError: if the folder is missing, empty, or has classes that the data set lacks.
    """
    kind, _, path = spec.partition(":")
    if kind != "folder" or not path:
        raise InvalidValue(f"data.extra is {spec!r}; expected folder:PATH, with one sub-folder per class")
    source = open_training_folder(Path(path))
    unknown = [name for name in source.classes if name not in images.classes]
    if unknown:
        raise DataError(
            f"extra images of {spec} have classes that {images.name} lacks: {', '.join(unknown[:5])}; "
            f"name the sub-folders after its classes: {', '.join(images.classes[:20])}"
        )
    index = torch.tensor([images.classes.index(name) for name in source.classes])
    extra = Images(source, source.train, image_size, in_chans)
    extra.labels = index[extra.labels]
    return extra
