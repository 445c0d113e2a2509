"""Processes that train one model together, started by torchrun or accelerate launch.

Each has the whole model and a shard of each batch. Gradients are averaged over the whole batch: N processes
compute what one process computes, up to rounding. With one process nothing here has an effect.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robust_export.errors import RobustExportError, TrainingError
from robust_export.utils.sharded_rng import ShardedGenerator, seed_rank
from robust_export.utils.work_items import join_process_group, launched_ranks

T = TypeVar("T")
E = TypeVar("E", bound=RobustExportError)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


class Processes:
    """Rank of this process, and collective operations, which all processes must call in the same order.

    Attributes:
        rank: from 0; rank 0 writes files.
        world: number of processes.
        device: of this process; with several, "cuda" becomes the GPU of LOCAL_RANK.
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
    def distributed(self) -> bool:
        """Whether there is more than one process."""
        return self.world > 1

    def sharded_generator(self, seed: int | None = None) -> ShardedGenerator:
        """Return a generator that samples for whole batches and keeps this process's shard."""
        generator = ShardedGenerator(self.rank, self.world)
        if seed is not None:
            generator.manual_seed(seed)
        return generator

    def rank_zero_broadcast(self, compute: Callable[[], T]) -> T:
        """Compute on rank 0 and return its result on all ranks; its RobustExportError is raised on all."""
        if not self.distributed:
            return compute()
        message: list[Any] = [None, None]  # result, error
        if self.rank == 0:
            try:
                message[0] = compute()
            except RobustExportError as error:
                message[1] = error
        with _lost_process_error():
            dist.broadcast_object_list(message)
        if message[1] is not None:
            raise self.reported_by_rank_zero(message[1])
        result: T = message[0]
        return result

    def raise_on_all(self, compute: Callable[[], T]) -> T:
        """Compute on every rank; a RobustExportError of one rank is raised on all."""
        if not self.distributed:
            return compute()
        own_error: RobustExportError | None = None
        try:
            result = compute()
        except RobustExportError as error:
            own_error = error
        errors: list[RobustExportError | None] = [None] * self.world
        with _lost_process_error():
            dist.all_gather_object(errors, own_error)
        for rank, raised in enumerate(errors):
            if raised is not None:
                raised.reported_elsewhere = rank != self.rank
                raise raised
        return result

    def reported_by_rank_zero(self, error: E) -> E:
        """Mark an error that all ranks raise, so that only rank 0 prints it; return it."""
        error.reported_elsewhere = self.rank != 0
        return error

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true on any rank."""
        return bool(self.sum_over_ranks(float(flag))[0]) if self.distributed else flag

    def sum_over_ranks(self, *numbers: float) -> list[float]:
        """Return the sum over all ranks of each number."""
        sums = torch.tensor(numbers, dtype=torch.float64)
        if self.distributed:
            with _lost_process_error():
                dist.all_reduce(sums)
        result: list[float] = sums.tolist()
        return result

    def average(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Replace each tensor by the sum over all ranks of weight * tensor, in one message.

        Args:
            weight: of this process; the weights of all add up to 1.
        """
        if not self.distributed or not tensors:
            return
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors]).mul_(weight)
            with _lost_process_error():
                dist.all_reduce(flat)
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def average_step(self, model: nn.Module, loss: Tensor, weight: float) -> None:
        """Average the gradients, batch norm's running statistics and the loss, in place."""
        if self.distributed:
            self.average([*gradients(model.parameters()), *running_statistics(model), loss.detach()], weight)

    @contextmanager
    def rank_specific_rng(self, seed: int) -> Iterator[None]:
        """Seed torch's global generators differently on each rank (for dropout); restore them on exit."""
        if not self.distributed:
            yield
            return
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            seed_rank(seed, self.rank)
            yield


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return the gradients of the parameters that have one."""
    return [p.grad for p in parameters if p.grad is not None]


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of the model's batch norms."""
    norms = [child for child in model.modules() if isinstance(child, BATCH_NORMS)]
    statistics = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
    return [tensor for tensor in statistics if tensor is not None]


@contextmanager
def _lost_process_error() -> Iterator[None]:
    """Raise TrainingError if a collective operation fails because another process ended."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            f"another training process ended or cannot be reached ({str(error).splitlines()[0][:200]}); see "
            "its error message. The last checkpoint is intact: continue with the same command and --resume, "
            "with any number of processes."
        ) from error
