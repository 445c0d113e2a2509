"""The optimiser's parameter groups and its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

from robust_export.nn.replace import learnt_modules
from robust_export.recipe.schema import Train


def make_optimizer(model: nn.Module, train: Train, lr_multiple: float) -> Optimizer:
    """Return SGD with Nesterov momentum, or AdamW, over three groups of parameters.

    Weights of more than one dimension decay; norms and biases do not; a learnt activation (Sparta, PSSiLU)
    does not either, and learns at `lr_multiple` times the rate. Frozen parameters are left out.
    """
    gates = {p for child in learnt_modules(model) for p in child.parameters()}
    learnt = [p for p in model.parameters() if p.requires_grad]
    plain = [p for p in learnt if p not in gates]
    groups = [
        {"params": [p for p in plain if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in plain if p.ndim <= 1], "weight_decay": 0.0},
        {
            "params": [p for p in learnt if p in gates],
            "weight_decay": 0.0,
            "lr": train.lr * lr_multiple,
        },
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: Optimizer
    if train.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=train.lr)
    else:
        momentum = train.momentum
        optimizer = torch.optim.SGD(groups, lr=train.lr, momentum=momentum, nesterov=momentum > 0)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def learning_rate_factor(progress: float, schedule: str, warmup: float) -> float:
    """Return the learning rate at `progress` (0 at the start, 1 at the end) over its peak.

    one-cycle rises linearly over the part `warmup` and falls linearly to 0; cosine falls as half a
    cosine from the start; steps is 1, a tenth from 1/2 of the run on and a hundredth from 3/4 on (Rice et
    al., arXiv 2002.11569).
    """
    if schedule == "steps":
        return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    rising = progress / warmup if warmup else 1.0
    return max(0.0, min(rising, (1 - progress) / (1 - warmup)))
