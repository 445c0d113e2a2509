"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from robust_export.nn.models import create_model
from robust_export.nn.sparta import Sparta
from robust_export.nn.sparta_file import freeze_sparta
from robust_export.recipe.schema import Train
from robust_export.training.optim import make_optimizer, make_schedule

OPTIONS: dict[str, Any] = {"channels": [8, 8, 8, 8], "stem_width": 8}
SCHEDULES = pytest.mark.parametrize(
    ("schedule", "warmup"),
    [
        ("one-cycle", 0.25), ("one-cycle", 0.0), ("one-cycle", 0.6), ("one-cycle", 1e-12),
        ("one-cycle", 0.999), ("cosine", 0.25), ("steps", 0.25),
    ],
)  # fmt: skip


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_parameter_groups(kind: str) -> None:
    model = create_model("resnet10t_sparta", image_size=8, **OPTIONS)
    settings = Train(optimizer="sgd" if kind == "sgd" else "adamw", lr=0.1, weight_decay=0.01)
    optimizer = make_optimizer(model, settings, 5.0)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(group_of) == len(list(model.parameters()))
    gates = {id(p) for m in model.modules() if isinstance(m, Sparta) for p in m.parameters()}
    for name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        is_gate = id(parameter) in gates
        decays = not is_gate and name.endswith("weight") and parameter.ndim > 1
        assert group["weight_decay"] == (0.01 if decays else 0.0), name
        assert group["lr"] == pytest.approx(0.5 if is_gate else 0.1), name
        if kind == "sgd":
            assert group["nesterov"]


def test_frozen_sparta_is_left_out() -> None:
    model = create_model("resnet10t_sparta", image_size=8, **OPTIONS)
    freeze_sparta(model)
    optimizer = make_optimizer(model, Train(), 5.0)
    in_groups = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert in_groups == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(optimizer.param_groups) == 2


def test_nesterov_needs_momentum() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), Train(momentum=0.0), 1.0)
    assert not optimizer.param_groups[0]["nesterov"]


def closed_form(progress: float, schedule: str, warmup: float) -> float:
    """Return the learning rate over its peak; `progress` is the fraction of completed steps."""
    if schedule == "steps":
        return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    rising = progress / warmup if warmup > 1e-9 else 1.0
    return max(0.0, min(rising, (1 - progress) / (1 - warmup)))


def rates(schedule: str, warmup: float, steps: int) -> list[tuple[float, ...]]:
    """Return the learning rates of both parameter groups in every step; their peaks are 0.2 and 0.6."""
    optimizer: Optimizer = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.2, 0.6)]
    )
    settings = Train(schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    scheduler = make_schedule(optimizer, settings, steps)
    result = []
    for _ in range(steps):
        result.append(tuple(group["lr"] for group in optimizer.param_groups))
        scheduler.step()
    return result


@SCHEDULES
@pytest.mark.parametrize("steps", [1, 2, 7, 33, 1000])
def test_rates_equal_closed_form(schedule: str, warmup: float, steps: int) -> None:
    found = rates(schedule, warmup, steps)
    for step, (rate, other) in enumerate(found):
        expected = closed_form(step / steps, schedule, warmup)
        assert rate == pytest.approx(0.2 * expected, rel=1e-11, abs=1e-15), step
        assert other == pytest.approx(0.6 * expected, rel=1e-11, abs=1e-15), step


@SCHEDULES
def test_rates_of_a_new_schedule_are_bit_identical(schedule: str, warmup: float) -> None:
    """A resumed run repeats the schedule from the start."""
    assert rates(schedule, warmup, 333) == rates(schedule, warmup, 333)
