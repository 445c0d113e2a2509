"""The optimiser with its parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, OneCycleLR

from robust_export.nn.activations import learnable_activations
from robust_export.recipe.schema import Train

MIN_WARMUP = 1e-6  # steps; a shorter one is none


def make_optimizer(model: nn.Module, train: Train, lr_multiple: float) -> Optimizer:
    """Return SGD with Nesterov momentum, or AdamW, with three parameter groups.

    Weights of two or more dimensions decay; norms and biases do not. Learnable activations (Sparta, PSSiLU)
    do not decay and have `lr_multiple` times the learning rate. Frozen parameters are left out.
    """
    activations = {p for child in learnable_activations(model) for p in child.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    others = [p for p in trainable if p not in activations]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        {
            "params": [p for p in trainable if p in activations],
            "weight_decay": 0.0,
            "lr": train.lr * lr_multiple,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr)
    momentum = train.momentum
    return torch.optim.SGD(groups, lr=train.lr, momentum=momentum, nesterov=momentum > 0)


def make_schedule(optimizer: Optimizer, train: Train, steps: int) -> LRScheduler:
    """Return the learning-rate schedule of a run with so many steps; call its `step` after each of them.

    one-cycle rises linearly over the fraction `train.warmup` of the steps and falls linearly, to 0 after the
    last one; cosine falls to 0 as half a cosine; steps divides the rate by 10 at 1/2 and at 3/4 of the steps
    (Rice et al., arXiv 2002.11569). The peak of each parameter group is the rate that it has now.
    """
    warmup = train.warmup * steps
    schedule: LRScheduler
    if train.schedule == "steps":
        schedule = MultiStepLR(optimizer, [math.ceil(steps / 2), math.ceil(3 * steps / 4)], gamma=0.1)
    elif train.schedule == "cosine":
        schedule = CosineAnnealingLR(optimizer, steps)
    elif warmup < MIN_WARMUP:
        schedule = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)
    else:
        # torch ends its two phases one step before pct_start * total_steps and before total_steps
        schedule = OneCycleLR(
            optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps + 1,
            pct_start=(warmup + 1) / (steps + 1), div_factor=math.inf, anneal_strategy="linear",
            cycle_momentum=False,
        )  # fmt: skip
    optimizer.step()  # without gradients it does nothing; torch warns if the first step is the schedule's
    return schedule
