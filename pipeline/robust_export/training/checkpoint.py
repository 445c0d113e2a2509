"""Checkpoints of a training run: tensors in safetensors, the rest in JSON, no pickle.

checkpoints/last.json has the name and digest of the tensors' file and is replaced last: whenever the process
dies, last.json and the file that it names are complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save
from torch import Tensor
from torch.optim import Optimizer

from robust_export.errors import TrainingError
from robust_export.utils.files import sha256, write_atomically, write_json

FOLDER = "checkpoints"
POINTER = "last.json"

State = Mapping[str, Mapping[str, Tensor]]  # {"model": {name: tensor}, "ema": ..., ...}


def save_checkpoint(folder: Path, epoch: int, state: State, facts: Mapping[str, Any], step: int = 0) -> None:
    """Write the state after `epoch` epochs and `step` steps of the next, then delete the old checkpoint.

    Args:
        folder: where to write.
        epoch, step: position in the run, for the file name.
        state: tensors by part and name.
        facts: JSON values, written to last.json.

    Raises:
        RobustExportError: if it cannot be written; the previous checkpoint remains.
    """
    flat = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part, entries in state.items()
        for name, tensor in entries.items()
    }
    file = folder / (f"epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else "") + ".safetensors")
    write_atomically(file, save(flat))
    write_json(folder / POINTER, {"file": file.name, "sha256": sha256(file), "epoch": epoch, **facts})
    for old in folder.glob("epoch-*.safetensors"):
        if old != file:
            old.unlink()


def has_checkpoint(folder: Path) -> bool:
    """Return whether the folder contains a checkpoint."""
    return (folder / POINTER).is_file()


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the last checkpoint: tensors by part and name, and the JSON values.

    Raises:
        TrainingError: if a file is missing or was altered.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / POINTER).read_text("utf-8"))
        file = folder / facts["file"]
        if sha256(file) != facts["sha256"]:
            raise ValueError(f"{file.name} was altered: its SHA-256 differs from the one in {POINTER}")
        flat = load_file(file)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise TrainingError(
            f"the checkpoint in {folder} cannot be resumed: {error}\n"
            "Restore it, or delete the folder and train again."
        ) from error
    state: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in flat.items():
        part, _, name = full_name.partition("/")
        state.setdefault(part, {})[name] = tensor
    return state, facts


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as tensors by name, such as "3.momentum_buffer" for parameter 3."""
    return {
        f"{index}.{name}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Restore the state that `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in saved.items():
        index, _, name = full_name.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
