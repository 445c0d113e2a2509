"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robust_export.nn.models import create_model
from robust_export.nn.sparta import Sparta
from robust_export.nn.sparta_file import freeze_sparta
from robust_export.recipe.schema import Train
from robust_export.training.optim import learning_rate_factor, make_optimizer, set_learning_rate

OPTIONS: dict[str, Any] = {"channels": [8, 8, 8, 8], "stem_width": 8}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_only_plain_weights_decay_and_sparta_learns_faster(kind: str) -> None:
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


def test_a_frozen_sparta_is_left_out() -> None:
    model = create_model("resnet10t_sparta", image_size=8, **OPTIONS)
    freeze_sparta(model)
    optimizer = make_optimizer(model, Train(), 5.0)
    learnt = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert learnt == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(optimizer.param_groups) == 2


def test_the_schedule_scales_every_group() -> None:
    model = create_model("resnet10t_sparta", image_size=8, **OPTIONS)
    optimizer = make_optimizer(model, Train(lr=0.2), 3.0)
    for factor in (0.5, 0.25):  # from the peak each time, not from the last value
        set_learning_rate(optimizer, factor)
        assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx(
            [0.2 * factor, 0.2 * factor, 0.6 * factor]
        )


@pytest.mark.parametrize(
    ("schedule", "warmup", "progress", "expected"),
    [
        ("one-cycle", 0.25, 0.0, 0.0),
        ("one-cycle", 0.25, 0.125, 0.5),
        ("one-cycle", 0.25, 0.25, 1.0),
        ("one-cycle", 0.25, 0.625, 0.5),
        ("one-cycle", 0.25, 1.0, 0.0),
        ("one-cycle", 0.0, 0.0, 1.0),
        ("cosine", 0.25, 0.0, 1.0),
        ("cosine", 0.25, 0.5, 0.5),
        ("cosine", 0.25, 1.0, 0.0),
    ],
)
def test_learning_rate_factor(schedule: str, warmup: float, progress: float, expected: float) -> None:
    assert learning_rate_factor(progress, schedule, warmup) == pytest.approx(expected, abs=1e-12)


def test_nesterov_needs_momentum() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = make_optimizer(model, Train(momentum=0.0), 1.0)
    assert not optimizer.param_groups[0]["nesterov"]
