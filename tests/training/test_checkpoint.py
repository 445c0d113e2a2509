"""Checkpoints: what is saved is restored, and altered files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from robust_export.errors import TrainingError
from robust_export.training.checkpoint import (
    POINTER,
    has_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)

STATE = {"model": {"a.weight": torch.arange(4.0)}, "ema": {"n": torch.tensor(3)}}


def test_round_trip(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path)
    save_checkpoint(tmp_path, 2, STATE, {"best_epoch": 1})
    assert has_checkpoint(tmp_path)
    state, facts = load_checkpoint(tmp_path)
    assert torch.equal(state["model"]["a.weight"], torch.arange(4.0))
    assert state["ema"]["n"] == 3
    assert facts["best_epoch"] == 1
    assert facts["epoch"] == 2


def test_only_the_last_one_is_kept(tmp_path: Path) -> None:
    for epoch in range(3):
        save_checkpoint(tmp_path, epoch, STATE, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-0002.safetensors", POINTER]


def test_keys_of_a_trainers_checkpoint(trained: Path) -> None:
    """Checkpoints of earlier releases have the same keys."""
    facts = json.loads((trained / "checkpoints" / POINTER).read_text())
    assert facts.keys() == {
        "file", "sha256", "epoch", "best_epoch", "history", "position", "watched", "sparta_from", "scaler"
    }  # fmt: skip
    assert facts["position"].keys() == {"step", "total", "seen"}
    names = load_file(trained / "checkpoints" / facts["file"])
    assert {name.partition("/")[0] for name in names} == {"model", "ema", "best", "optimizer"}


@pytest.mark.parametrize("damage", ["byte", "short", "gone", "pointer"])
def test_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, 1, STATE, {})
    file = tmp_path / "epoch-0001.safetensors"
    content = file.read_bytes()
    if damage == "byte":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "short":
        file.write_bytes(content[:-1])
    elif damage == "gone":
        file.unlink()
    else:
        (tmp_path / POINTER).write_text("{")
    with pytest.raises(TrainingError, match="cannot be resumed"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_restored_optimiser_takes_the_same_steps(kind: type[torch.optim.Optimizer]) -> None:
    def start() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.arange(3.0))
        options: dict[str, Any] = {"lr": 0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {})}
        return parameter, kind([parameter], **options)

    def step(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        parameter.grad = parameter.detach().square()
        optimizer.step()

    uninterrupted, its_optimizer = start()
    for _ in range(4):
        step(uninterrupted, its_optimizer)
    first, optimizer = start()
    for _ in range(2):
        step(first, optimizer)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    second, resumed = start()
    second.data.copy_(first.data)
    load_optimizer_tensors(resumed, saved)
    for _ in range(2):
        step(second, resumed)
    assert torch.equal(second, uninterrupted)
