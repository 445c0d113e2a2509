"""Long work cut into units, each done once: by this process or by another, now or before an interruption.

A unit depends on its number and on what `run` is told, never on who computes it: the result is the same for
every number of processes, and what was kept is taken for nothing else. `torchrun` and `accelerate launch` say
by the environment how many processes there are.
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

HOW = (
    "expected what `torchrun --nproc-per-node N -m robust_export COMMAND ...` sets: start it so, or unset "
    "WORLD_SIZE"
)

Arrays = Mapping[str, npt.NDArray[Any]]
"""What a unit results in: arrays by name."""


class WorkItems:
    """Runs units, keeps their results in `folder` (None keeps nothing), and shares them among processes.

    Attributes:
        rank: the number of this process, from 0.
        world: how many processes there are.
        kept: how many units were not computed, because the folder had them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.rank, self.world = join()
        self.kept = 0

    def run(
        self, stage: str, compute: Callable[[int], Arrays], count: int, *, given: Sequence[bytes] | None = (),
    ) -> list[Arrays]:  # fmt: skip
        """Return the results of the units 0 to count - 1, in this order, on every process.

        Args:
            stage: names the work.
            compute: does unit i.
            given: everything that the results depend on, and that neither the folder nor the stage says.
                None: nobody can say, so that nothing is kept.
        """
        folder = self.folder if given is not None else None
        name = f"{stage}.{_digest(count, *given or ())}"
        mine = {i: self._one(folder, f"{name}.{i}", i, compute) for i in range(self.rank, count, self.world)}
        if self.world > 1:
            for theirs in _gather(mine):
                mine |= theirs
        return [mine[i] for i in range(count)]

    def finish(self) -> None:
        """Forget what was kept: the work is done, and its result is written elsewhere."""
        if self.folder is not None and self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _one(self, folder: Path | None, name: str, number: int, compute: Callable[[int], Arrays]) -> Arrays:
        if folder is None:
            return compute(number)
        file = folder / f"{name}.safetensors"
        try:
            found: Arrays = safetensors.numpy.load_file(file)
        except (OSError, safetensors.SafetensorError):  # not there, or not whole: it is computed again
            result = {name: np.ascontiguousarray(array) for name, array in compute(number).items()}
            write_atomically(file, safetensors.numpy.save(result))
            return result
        self.kept += 1
        return found


def to_array(lines: list[str]) -> npt.NDArray[np.uint8]:
    """Return lines of text as an array, for a unit's result."""
    return np.frombuffer("\n".join(lines).encode(), np.uint8)


def to_lines(array: npt.NDArray[Any]) -> list[str]:
    """Return the lines that `to_array` was given."""
    text = array.astype(np.uint8).tobytes().decode()
    return text.split("\n") if text else []


def _digest(count: int, *given: bytes) -> str:
    digest = hashlib.sha256(str(count).encode())
    for part in given:
        digest.update(hashlib.sha256(part).digest())  # of a length of its own, so that no two run together
    return digest.hexdigest()[:16]


def launched() -> tuple[int, int]:
    """Return (rank, world) as a launcher's environment says them; (0, 1) where nothing started several.

    A RANK that was left over, without a WORLD_SIZE of 2 or more, says nothing.

    Raises:
        InvalidValue: if they are no numbers, or no place among the processes.
    """
    given = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    if given["WORLD_SIZE"] in ("", "1"):
        return 0, 1
    try:
        rank, world = int(given["RANK"]), int(given["WORLD_SIZE"])
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise InvalidValue(f"RANK is {given['RANK']!r} and WORLD_SIZE {given['WORLD_SIZE']!r}; {HOW}")
    return rank, world


def join(backend: str = "gloo") -> tuple[int, int]:
    """Return (rank, world), and join the other processes where a launcher started several.

    Args:
        backend: of torch.distributed, such as "gloo" or "cpu:gloo,cuda:nccl".
    """
    rank, world = launched()
    if world > 1:
        import torch.distributed as dist

        if not dist.is_initialized():
            try:
                dist.init_process_group(backend)
            except (ValueError, RuntimeError) as error:
                raise InvalidValue(f"the {world} processes cannot find each other: {error}\n{HOW}") from None
    return rank, world


def _gather(mine: dict[int, Arrays]) -> list[dict[int, Arrays]]:
    import torch.distributed as dist

    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, mine)
    return everybody
