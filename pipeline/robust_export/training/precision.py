"""Mixed precision: autocast, and float16 gradients for attacks that neither vanish nor overflow."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

GRADIENT_SCALE = 1024.0  # float16's smallest number is 6e-8

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(amp: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of `train.amp` ("off", "bf16" or "fp16") on the device."""
    return nullcontext() if amp == "off" else torch.autocast(device.type, DTYPES[amp])


class ScaledGradient(nn.Module):
    """A model with the same logits, whose gradient is multiplied by `GRADIENT_SCALE` and made finite.

    For attacks in float16: they use only the gradient's direction, which a positive factor does not change.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(_FiniteGradient.apply(pixels))
        scaled: Tensor = _ScaleGradient.apply(logits.float(), GRADIENT_SCALE)  # before rounding to float16
        return scaled


class _FiniteGradient(torch.autograd.Function):
    """The identity; in its gradient nan becomes 0 and inf the largest finite number."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return torch.nan_to_num(gradient)


class _ScaleGradient(torch.autograd.Function):
    """The identity; its gradient is multiplied by `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
