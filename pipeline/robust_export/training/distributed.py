"""The processes that train one network together, started by torchrun or accelerate launch.

Every one has the whole network and a part of each batch. Gradients are averaged over the whole batch, so that
N processes compute what one computes, up to rounding. With one process nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust_export.errors import RobustExportError, TrainingError
from robust_export.utils.sharded_rng import ShardedGenerator, seed_rank
from robust_export.utils.work_items import join_process_group, launched_ranks

T = TypeVar("T")
E = TypeVar("E", bound=RobustExportError)

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


class Processes:
    """The place of this process, and what all do together: they call the same in the same order.

    Attributes:
        rank: from 0; the first one writes.
        world: how many there are.
        device: this process's.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world = launched_ranks()
        self.device = device
        if self.world == 1:
            return
        if device.type == "cuda" and device.index is None:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        join_process_group(BACKENDS.get(device.type, "gloo"))

    @property
    def several(self) -> bool:
        return self.world > 1

    @property
    def first(self) -> bool:
        """Whether it is this process that writes."""
        return self.rank == 0

    def generator(self) -> ShardedGenerator:
        """Return a generator that draws for whole batches and keeps this process's part."""
        return ShardedGenerator(self.rank, self.world)

    def rank_zero_broadcast(self, compute: Callable[[], T]) -> T:
        """Return on every process what the first one computes; raise on all what it raises."""
        if not self.several:
            return compute()
        said: list[Any] = [None, None]
        if self.first:
            try:
                said[0] = compute()
            except RobustExportError as error:
                said[1] = error
        with _together():
            dist.broadcast_object_list(said)
        if said[1] is not None:
            raise self.alike(said[1])
        result: T = said[0]
        return result

    def each(self, compute: Callable[[], T]) -> T:
        """Return what this process computes; raise on all what one of them raises."""
        if not self.several:
            return compute()
        mine: RobustExportError | None = None
        try:
            result = compute()
        except RobustExportError as error:
            mine = error
        said: list[RobustExportError | None] = [None] * self.world
        with _together():
            dist.all_gather_object(said, mine)
        for rank, theirs in enumerate(said):
            if theirs is not None:
                theirs.reported_elsewhere = rank != self.rank
                raise theirs
        return result

    def alike(self, error: E) -> E:
        """Return an error that all processes raise, marked so that one of them reports it."""
        error.reported_elsewhere = not self.first
        return error

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set on one of them."""
        return bool(self.total(float(flag))[0]) if self.several else flag

    def total(self, *numbers: float) -> list[float]:
        """Return each number's sum over the processes."""
        sums = torch.tensor(numbers, dtype=torch.float64)
        if self.several:
            with _together():
                dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def average(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Replace each tensor by the sum over the processes of weight * tensor, in one message."""
        if not self.several or not tensors:
            return
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors]).mul_(weight)
            with _together():
                dist.all_reduce(flat)
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def average_step(self, model: nn.Module, loss: Tensor, weight: float) -> None:
        """Average gradients, the loss (in place) and batch norm's running statistics."""
        if self.several:
            self.average([*gradients(model.parameters()), *running_statistics(model), loss.detach()], weight)

    @contextmanager
    def apart(self, seed: int) -> Iterator[None]:
        """Let torch's global generators differ within (dropout), and be afterwards as if nobody had drawn."""
        if not self.several:
            yield
            return
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            seed_rank(seed, self.rank)
            yield


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return the gradients that there are."""
    return [p.grad for p in parameters if p.grad is not None]


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of the model's batch norms."""
    norms = [child for child in model.modules() if isinstance(child, _BatchNorm)]
    found = [each for norm in norms for each in (norm.running_mean, norm.running_var)]
    return [each for each in found if each is not None]


@contextmanager
def _together() -> Iterator[None]:
    """Turn the loss of another process into an error that says so."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            f"another of the processes that train together ended or cannot be reached "
            f"({str(error).splitlines()[0][:200]}); it says why. The last checkpoint is whole: go on with "
            "the same command and --resume, with any number of processes."
        ) from error
