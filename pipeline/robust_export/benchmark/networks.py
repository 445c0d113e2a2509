"""Networks of a benchmark: the ReLU variant of a Sparta network, and the feature maps that Sparta gets."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from robust_export.nn.sparta import Sparta
from robust_export.runtimes.classifier import Pixels

Shape = tuple[int, int, int, int]  # N, C, H, W


def relu_variant(network: nn.Module) -> nn.Module:
    """Return a copy of the network with nn.ReLU in place of every Sparta module."""
    variant = copy.deepcopy(network)
    sites = list(variant.named_modules(remove_duplicate=False))  # a module may serve several sites
    for name, module in sites:
        if isinstance(module, Sparta):
            variant.set_submodule(name, nn.ReLU())
    return variant


def sparta_inputs(network: nn.Module, pixels: Pixels) -> list[tuple[Shape, int]]:
    """Return shape of the feature map and kernel size of every call of Sparta in one forward pass."""
    inputs: list[tuple[Shape, int]] = []

    def record(module: Sparta, args: tuple[Any, ...]) -> None:
        n, c, h, w = args[0].shape
        inputs.append(((n, c, h, w), module.kernel_size))

    hooks = [m.register_forward_pre_hook(record) for m in network.modules() if isinstance(m, Sparta)]
    try:
        with torch.inference_mode():
            network(torch.from_numpy(pixels))
    finally:
        for hook in hooks:
            hook.remove()
    return inputs
