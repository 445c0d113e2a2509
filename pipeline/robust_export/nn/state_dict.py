"""A network's tensors by name, shared ones once, and loading them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_export.errors import InvalidValue


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name; a shared tensor appears once, by its first name."""
    persistent = module.state_dict().keys()
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor for name, tensor in named.items() if name in persistent}


def load_tensors(module: nn.Module, saved: dict[str, Tensor]) -> None:
    """Copy `saved` into the module's parameters and buffers.

    Raises:
        InvalidValue: unless names and shapes are exactly those of `tensors(module)`.
    """
    own = tensors(module)
    if unmatched := sorted(own.keys() ^ saved.keys()):
        raise InvalidValue(
            f"{len(unmatched)} tensors are missing or unknown, such as {', '.join(unmatched[:5])}"
        )
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise InvalidValue(f"{name} is {list(saved[name].shape)}, expected {list(tensor.shape)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
