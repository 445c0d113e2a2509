"""The activations that a model's name can end in."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from robust_export.nn.pssilu import ParametricShiftedSiLU
from robust_export.nn.sparta import Sparta

LEARNABLE = (Sparta, ParametricShiftedSiLU)  # activations with parameters, one per width or per site

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "sparta": Sparta,
    "relu": lambda _: nn.ReLU(),
    "silu": lambda _: nn.SiLU(),
    "gelu": lambda _: nn.GELU(),
    "softplus": lambda _: nn.Softplus(),
    "pssilu": lambda _: ParametricShiftedSiLU(),
}
"""Activations that a model name can end in, made from a number of channels."""


def learnable_activations(module: nn.Module) -> list[nn.Module]:
    """Return the network's activations that have parameters, each once."""
    return [child for child in module.modules() if isinstance(child, LEARNABLE)]
