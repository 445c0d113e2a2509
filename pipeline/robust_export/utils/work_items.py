"""Long work split into items that are each computed once, by several processes and across interruptions.

An item's result depends on its index and on the inputs that `run` is given, not on the process that computes
it: results are the same for any number of processes, and a stored result is reused only for the same inputs.
`torchrun` and `accelerate launch` set the number of processes in the environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from robust_export.errors import InvalidValue
from robust_export.utils.files import write_atomically

LAUNCH_HELP = (
    "expected what `torchrun --nproc-per-node N -m robust_export COMMAND ...` sets: start the command like "
    "that, or unset WORLD_SIZE"
)

Arrays = Mapping[str, npt.NDArray[Any]]
"""Result of an item: arrays by name."""


class WorkItems:
    """Computes items, stores their results in `folder` (None stores nothing), and exchanges them.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        reused: number of results that were read from the folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.rank, self.world = join_process_group()
        self.reused = 0

    def run(
        self, stage: str, compute: Callable[[int], Arrays], count: int, *,
        depends_on: Sequence[bytes] | None = (),
    ) -> list[Arrays]:  # fmt: skip
        """Return the results of items 0 to count - 1 on every process.

        Args:
            stage: name of the work.
            compute: returns the result of item i.
            count: number of items.
            depends_on: all inputs of the results that neither the folder nor the stage identifies. None if
                they cannot be identified: then nothing is stored.
        """
        folder = self.folder if depends_on is not None else None
        name = f"{stage}.{_digest(count, *depends_on or ())}"
        results = {
            i: self._load_or_compute(folder, f"{name}.{i}", i, compute)
            for i in range(self.rank, count, self.world)
        }
        if self.world > 1:
            for others in _all_gather(results):
                results |= others
        return [results[i] for i in range(count)]

    def finish(self) -> None:
        """Delete the stored results, once the final result is written elsewhere."""
        if self.folder is not None and self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _load_or_compute(
        self, folder: Path | None, name: str, index: int, compute: Callable[[int], Arrays]
    ) -> Arrays:
        if folder is None:
            return compute(index)
        file = folder / f"{name}.safetensors"
        try:
            stored: Arrays = safetensors.numpy.load_file(file)
        except (OSError, safetensors.SafetensorError):  # missing or damaged: compute it again
            result = {name: np.ascontiguousarray(array) for name, array in compute(index).items()}
            write_atomically(file, safetensors.numpy.save(result))
            return result
        self.reused += 1
        return stored


def to_array(lines: list[str]) -> npt.NDArray[np.uint8]:
    """Return lines of text as an array, for the result of an item."""
    return np.frombuffer("\n".join(lines).encode(), np.uint8)


def to_lines(array: npt.NDArray[Any]) -> list[str]:
    """Return the lines that `to_array` was given."""
    text = array.astype(np.uint8).tobytes().decode()
    return text.split("\n") if text else []


def _digest(count: int, *inputs: bytes) -> str:
    digest = hashlib.sha256(str(count).encode())
    for part in inputs:
        digest.update(hashlib.sha256(part).digest())  # of fixed length: ["ab"] differs from ["a", "b"]
    return digest.hexdigest()[:16]


def launched_ranks() -> tuple[int, int]:
    """Return (rank, world size) as the launcher's environment variables give them; (0, 1) without a launcher.

    RANK is ignored unless WORLD_SIZE is 2 or more.

    Raises:
        InvalidValue: unless both are integers with 0 <= RANK < WORLD_SIZE.
    """
    given = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    if given["WORLD_SIZE"] in ("", "1"):
        return 0, 1
    try:
        rank, world = int(given["RANK"]), int(given["WORLD_SIZE"])
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise InvalidValue(f"RANK is {given['RANK']!r} and WORLD_SIZE {given['WORLD_SIZE']!r}; {LAUNCH_HELP}")
    return rank, world


def join_process_group(backend: str = "gloo") -> tuple[int, int]:
    """Return (rank, world size) after joining the process group, if a launcher started several processes.

    Args:
        backend: of torch.distributed, such as "gloo" or "cpu:gloo,cuda:nccl".

    Raises:
        InvalidValue: if the processes cannot connect.
    """
    rank, world = launched_ranks()
    if world > 1:
        import torch.distributed as dist

        if not dist.is_initialized():
            try:
                dist.init_process_group(backend)
            except (ValueError, RuntimeError) as error:
                raise InvalidValue(f"the {world} processes cannot connect: {error}\n{LAUNCH_HELP}") from None
    return rank, world


def _all_gather(results: dict[int, Arrays]) -> list[dict[int, Arrays]]:
    import torch.distributed as dist

    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, results)
    return gathered
