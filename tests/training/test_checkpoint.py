"""The resumable state: what is saved comes back, and what was altered is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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


@pytest.mark.parametrize("damage", ["byte", "short", "gone", "pointer"])
def test_a_damaged_one_is_refused(tmp_path: Path, damage: str) -> None:
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
def test_an_optimiser_goes_on_where_it_stopped(kind: type[torch.optim.Optimizer]) -> None:
    def start() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.arange(3.0))
        options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9 if kind is torch.optim.SGD else 0}
        if kind is not torch.optim.SGD:
            del options["momentum"]
        return parameter, kind([parameter], **options)

    def step(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        parameter.grad = parameter.detach().square()
        optimizer.step()

    straight, its_optimizer = start()
    for _ in range(4):
        step(straight, its_optimizer)
    first, optimizer = start()
    for _ in range(2):
        step(first, optimizer)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    second, resumed = start()
    second.data.copy_(first.data)
    load_optimizer_tensors(resumed, saved)
    for _ in range(2):
        step(second, resumed)
    assert torch.equal(second, straight)
