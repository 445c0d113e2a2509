"""Random numbers of a batch that several processes share: whoever draws, an image gets the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

LEAST = 2  # images of a process: batch norm has no variance of one


class ShardedGenerator(Generator):
    """A generator on the CPU of which every process has an equal one.

    `drawn` draws by it for a whole batch and keeps this process's part: images rank, rank + world, ... Where
    less than two images are left for a process, it repeats the part of the first with weight 0.

    Attributes:
        count: how many images the whole batch has.
    """

    def __new__(cls, *_: int) -> ShardedGenerator:
        return super().__new__(cls)

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world, self.count = rank, world, 0

    def of(self, count: int) -> ShardedGenerator:
        """Return itself, for a batch of so many images."""
        self.count = count
        return self

    @contextmanager
    def undivided(self) -> Iterator[None]:
        """Keep whole draws within: this process has the whole batch."""
        before, (self.rank, self.world) = (self.rank, self.world), (0, 1)
        try:
            yield
        finally:
            self.rank, self.world = before

    @property
    def mine(self) -> slice:
        """The part of the batch that is this process's."""
        busy = self._busy
        return slice(self.rank if self.rank < busy else 0, self.count, busy)

    @property
    def weight(self) -> float:
        """The part's share of the batch's mean, in [0, 1]; the shares of all processes add up to 1."""
        if self.rank >= self._busy:
            return 0.0
        return len(range(self.count)[self.mine]) / self.count

    @property
    def _busy(self) -> int:
        """How many processes have a part of their own."""
        return max(1, min(self.world, self.count // LEAST))


def drawn(
    sample: Callable[..., Tensor], shape: tuple[int, ...], generator: Generator, *, dim: int = 0
) -> Tensor:
    """Return `sample(shape, generator=generator)`, or the part of a whole batch's draw.

    Args:
        sample: torch.rand, torch.randn or the like.
        shape: of this process's part.
        generator: a `ShardedGenerator` draws for the whole batch.
        dim: the one of images.
    """
    if not isinstance(generator, ShardedGenerator):
        return sample(shape, generator=generator)
    whole = sample((*shape[:dim], generator.count, *shape[dim + 1 :]), generator=generator)
    return whole[(*(slice(None),) * dim, generator.mine)]


def set_apart(seed: int, rank: int) -> None:
    """Seed torch's global generators so that dropout is another in every process."""
    torch.manual_seed((seed * 1_000_003 + rank) % 2**63)
