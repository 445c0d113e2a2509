"""Random numbers for a batch that several processes share: an image gets the same ones on every process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

MIN_SHARD = 2  # images per process: batch norm needs two images


class ShardedGenerator(Generator):
    """A CPU generator that is in the same state on every process.

    `sharded_sample` samples with it for the whole batch and returns this process's shard: the images rank,
    rank + world, ... If the batch has fewer than two images per process, the last processes repeat the first
    shard with weight 0.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        count: number of images in the whole batch.
    """

    def __new__(cls, *_: int) -> ShardedGenerator:
        return super().__new__(cls)

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world, self.count = rank, world, 0

    def for_batch(self, count: int) -> ShardedGenerator:
        """Set the number of images in the whole batch; return the generator."""
        self.count = count
        return self

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Sample for the whole batch within the context: this process has all of it."""
        before, (self.rank, self.world) = (self.rank, self.world), (0, 1)
        try:
            yield
        finally:
            self.rank, self.world = before

    @property
    def shard(self) -> slice:
        """The images of the batch that this process has."""
        shards = self._shards
        return slice(self.rank if self.rank < shards else 0, self.count, shards)

    @property
    def weight(self) -> float:
        """Weight of the shard in the batch mean, in [0, 1]; the weights of all processes sum to 1."""
        if self.rank >= self._shards:
            return 0.0
        return len(range(self.count)[self.shard]) / self.count

    @property
    def _shards(self) -> int:
        """Number of distinct shards."""
        return max(1, min(self.world, self.count // MIN_SHARD))


def sharded_sample(
    sample: Callable[..., Tensor], shape: tuple[int, ...], generator: Generator, *, dim: int = 0
) -> Tensor:
    """Return `sample(shape, generator=generator)`, or this process's shard of the whole batch's sample.

    Args:
        sample: torch.rand, torch.randn or the like.
        shape: of the shard.
        generator: a `ShardedGenerator` samples for the whole batch.
        dim: the batch dimension.
    """
    if not isinstance(generator, ShardedGenerator):
        return sample(shape, generator=generator)
    batch = sample((*shape[:dim], generator.count, *shape[dim + 1 :]), generator=generator)
    return batch[(*(slice(None),) * dim, generator.shard)]


def seed_rank(seed: int, rank: int) -> None:
    """Seed torch's global generators differently on every process, for dropout."""
    torch.manual_seed((seed * 1_000_003 + rank) % 2**63)
