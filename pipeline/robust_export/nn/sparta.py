"""Sparta: a spatially attentive, input-dependent extension of ReLU.

    Sparta(x; w, b) = relu(x) * (2 * sigmoid(w (*) x + b))

`(*)` is a depthwise cross-correlation of stride 1 with zero padding k // 2. The gate lies in
[0, 2]; w = 0, b = 0 makes it exactly 1 and the function exactly ReLU.

The idea (spatially attentive, input-dependent, transferable between CNNs and data sets) is that of
Purohit et al., arXiv 2105.08269; this closed form is this project's own (see docs/sparta.md).

This file is the reference: the ONNX function body and every kernel are tested against it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_export.errors import InvalidValue
from robust_export.nn.operator import DOMAIN, OPERATOR, VERSION
from robust_export.recipe.schema import SpartaForm


def sparta(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return relu(x) * (2 * sigmoid(weight (*) x + bias)).

    Args:
        x: [N, C, H, W], float32, float16 or bfloat16 (float64 is accepted, for tests).
        weight: [C, 1, k, k], depthwise kernel, k odd.
        bias: [C].

    Returns:
        [N, C, H, W] in the dtype of `x`. The gate and the product are computed in float32 (float64
        for a float64 `x`) and rounded once.

    Raises:
        InvalidValue: if the shapes do not fit each other, or x is of integers.
    """
    if not x.is_floating_point():
        raise InvalidValue(f"Sparta needs floating-point planes; received {x.dtype}")
    check_shapes(tuple(x.shape), tuple(weight.shape), tuple(bias.shape))
    wide_x, attention = _attention(x, weight, bias)
    if torch.is_grad_enabled() and attention.requires_grad and not torch.compiler.is_compiling():
        return gated(wide_x, attention).to(x.dtype)
    gate = 2 * torch.sigmoid(attention)  # the gate is doubled, not x: float16 would overflow
    return (F.relu(wide_x) * gate).to(x.dtype)


def sparta_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x * sigmoid(weight (*) x + bias), the form of research that starts at SiLU.

    Shapes and dtypes are those of `sparta`. It has no kernel and no ONNX operator.
    """
    check_shapes(tuple(x.shape), tuple(weight.shape), tuple(bias.shape))
    wide_x, attention = _attention(x, weight, bias)
    return (wide_x * torch.sigmoid(attention)).to(x.dtype)


def _attention(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and weight (*) x + bias, both in float32 (float64 for a float64 `x`)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # Autocast would round the gate's input to half precision, whatever dtype it is given.
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        wide_x = x.to(wide)
        padding = weight.shape[-1] // 2
        return wide_x, F.conv2d(
            wide_x, weight.to(wide), bias.to(wide), padding=padding, groups=weight.shape[0]
        )


def check_shapes(x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
    """Raise InvalidValue unless x, weight and bias are [N, C, H, W], [C, 1, k, k], [C], k odd."""
    if len(x) != 4:
        raise InvalidValue(f"Sparta needs x of shape [N, C, H, W]; received {list(x)}")
    channels, kernel = x[1], weight[-1] if weight else 0
    if weight != (channels, 1, kernel, kernel) or kernel % 2 == 0:
        raise InvalidValue(
            f"Sparta needs a weight of shape [{channels}, 1, k, k] with k odd for x of shape "
            f"{list(x)}; received {list(weight)}"
        )
    if bias != (channels,):
        raise InvalidValue(f"Sparta needs a bias of shape [{channels}]; received {list(bias)}")


class Sparta(nn.Module):
    """The Sparta activation with its learnt gate; it starts as ReLU (weight and bias are zero).

    Args:
        channels: C, the width of the planes it attends to.
        kernel_size: k, the odd side of the neighbourhood the gate reads. 1 makes it a rectified
            per-channel Swish, 2 * relu(x) * sigmoid(w * x + b).
        form: "relu", or "silu" for x * sigmoid(w (*) x + b), which starts as SiLU (w is 1 in its centre).

    Shape: [N, C, H, W] to [N, C, H, W], dtype kept.
    """

    def __init__(self, channels: int, kernel_size: int = 3, form: SpartaForm = "relu") -> None:
        super().__init__()
        if channels < 1:
            raise InvalidValue(f"Sparta needs at least one channel; received {channels}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InvalidValue(f"Sparta needs an odd kernel_size of 1 or more; received {kernel_size}")
        self.form = form
        self.function: Callable[[Tensor, Tensor, Tensor], Tensor] = sparta  # or another that computes it
        self.weight = nn.Parameter(torch.zeros(channels, 1, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(channels))
        if form == "silu":
            with torch.no_grad():
                self.weight[:, :, kernel_size // 2, kernel_size // 2] = 1

    @property
    def channels(self) -> int:
        return self.weight.shape[0]

    @property
    def kernel_size(self) -> int:
        return self.weight.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "silu":
            return sparta_silu(x, self.weight, self.bias)
        if torch.onnx.is_in_onnx_export():
            result: Tensor = torch.onnx.ops.symbolic(
                f"{DOMAIN}::{OPERATOR}",
                (x, self.weight, self.bias),
                {"channels": self.channels},
                dtype=x.dtype,
                shape=x.shape,
                version=VERSION,
            )
            return result
        return self.function(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        form = ", form=silu" if self.form == "silu" else ""
        return f"{self.channels}, kernel_size={self.kernel_size}{form}"


def sparta_modules(module: nn.Module) -> dict[str, Sparta]:
    """Return the network's distinct Sparta modules by the first name each goes by."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Sparta)}


class Gate(torch.autograd.Function):
    """(x, a) to (y, s), all of one shape and floating-point type; differentiable as often as one likes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.sigmoid(attention)
        ctx.save_for_backward(x, share)
        ctx.set_materialize_grads(False)
        return torch.relu(x).mul_(2 * share), share

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, of_share: Tensor | None) -> tuple[Tensor | None, ...]:
        x, share = ctx.saved_tensors
        if torch.is_grad_enabled() or gradient is None:  # somebody will differentiate the gradient itself
            return _again(x, share, gradient, of_share)
        through = torch.ops.aten.threshold_backward(gradient, x, 0).mul_(2)
        of_attention = x * through
        if of_share is not None:
            of_attention += of_share
        torch.ops.aten.sigmoid_backward.grad_input(of_attention, share, grad_input=of_attention)
        return through.mul_(share), of_attention


def gated(x: Tensor, attention: Tensor) -> Tensor:
    """Return relu(x) * (2 * sigmoid(attention))."""
    result: Tensor = Gate.apply(x, attention)[0]
    return result


def _again(
    x: Tensor, share: Tensor, gradient: Tensor | None, of_share: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients in x and a by operations that autograd follows."""
    slope = share * (1 - share)
    if gradient is None:
        return None, slope * (0 if of_share is None else of_share)
    through = 2 * gradient * (x > 0)
    toward = x * through if of_share is None else x * through + of_share
    return through * share, toward * slope
