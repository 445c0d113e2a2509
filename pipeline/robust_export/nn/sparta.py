"""Sparta: a spatially attentive, input-dependent extension of ReLU.

    Sparta(x; w, b) = relu(x) * (2 * sigmoid(w (*) x + b))

`(*)` is a depthwise cross-correlation of stride 1 with zero padding k // 2. The gate, 2 * sigmoid(.), lies in
[0, 2]. With w = 0 and b = 0 it is exactly 1, and Sparta is exactly ReLU.

The idea (spatially attentive, input-dependent, transferable between CNNs and data sets) is from Guo,
Juefei-Xu, Zhou, Feng, Liu & Wang, arXiv 2105.08269. The closed form is this project's own (docs/sparta.md).

The ONNX function body and all kernels are tested against this module.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_export.errors import InvalidValue
from robust_export.nn.onnx_operator import DOMAIN, OPERATOR, VERSION
from robust_export.recipe.schema import SpartaForm


def sparta(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return relu(x) * (2 * sigmoid(weight (*) x + bias)).

    Args:
        x: feature map [N, C, H, W], float32, float16 or bfloat16 (float64 in tests).
        weight: depthwise kernel of the gate [C, 1, k, k], k odd.
        bias: of the gate, [C].

    Returns:
        [N, C, H, W] in the dtype of `x`. Gate and product are computed in float32 (float64 for a float64 `x`)
        and rounded once.

    Raises:
        InvalidValue: if the shapes do not match, or `x` is not floating-point.
    """
    if not x.is_floating_point():
        raise InvalidValue(f"Sparta needs a floating-point feature map; received {x.dtype}")
    check_shapes(tuple(x.shape), tuple(weight.shape), tuple(bias.shape))
    wide_x, preactivation = _preactivation(x, weight, bias)
    if torch.is_grad_enabled() and preactivation.requires_grad and not torch.compiler.is_compiling():
        return sparta_product(wide_x, preactivation).to(x.dtype)
    gate = 2 * torch.sigmoid(preactivation)  # double the gate, not x: float16 would overflow
    return (F.relu(wide_x) * gate).to(x.dtype)


def sparta_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x * sigmoid(weight (*) x + bias), a variant for research that starts as SiLU.

    Shapes and dtypes as in `sparta`. There is no kernel and no ONNX operator for it.
    """
    check_shapes(tuple(x.shape), tuple(weight.shape), tuple(bias.shape))
    wide_x, preactivation = _preactivation(x, weight, bias)
    return (wide_x * torch.sigmoid(preactivation)).to(x.dtype)


def _preactivation(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and weight (*) x + bias, both in float32 (float64 for a float64 `x`)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # Autocast would round the preactivation to half precision whatever its input dtype.
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
    """The Sparta activation with a learnable gate; it starts as ReLU (weight and bias are zero).

    Args:
        channels: C, the width of the feature map.
        kernel_size: k, side of the gate's kernel, odd. With 1, Sparta is a rectified per-channel Swish,
            2 * relu(x) * sigmoid(w * x + b).
        form: "relu", or "silu" for x * sigmoid(w (*) x + b), which starts as SiLU (w is 1 at its centre).

    Attributes:
        function: computes the form "relu"; a fused implementation can take its place.

    Shape: [N, C, H, W] to [N, C, H, W] of the same dtype.
    """

    def __init__(self, channels: int, kernel_size: int = 3, form: SpartaForm = "relu") -> None:
        super().__init__()
        if channels < 1:
            raise InvalidValue(f"Sparta needs at least one channel; received {channels}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InvalidValue(f"Sparta needs an odd kernel_size of 1 or more; received {kernel_size}")
        self.form = form
        self.function: Callable[[Tensor, Tensor, Tensor], Tensor] = sparta
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
    """Return the network's distinct Sparta modules, each by its first name."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Sparta)}


class SpartaProduct(torch.autograd.Function):
    """y = relu(x) * (2 s) with s = sigmoid(a), for x and a of the same shape and floating-point dtype.

        dy/dx = [x > 0] * 2 s
        dy/da = 2 relu(x) * s * (1 - s)

    It saves two tensors, x and s, where autograd saves four, and rounds as autograd does: values and
    gradients are bit-identical. s is an output as well, so that the gradient can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, preactivation: Tensor) -> tuple[Tensor, Tensor]:
        sigmoid = torch.sigmoid(preactivation)
        ctx.save_for_backward(x, sigmoid)
        ctx.set_materialize_grads(False)
        return torch.relu(x).mul_(2 * sigmoid), sigmoid

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_sigmoid: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        x, sigmoid = ctx.saved_tensors
        if torch.is_grad_enabled() or grad_output is None:  # the gradient is differentiated again
            return _differentiable_backward(x, sigmoid, grad_output, grad_sigmoid)
        grad_relu = torch.ops.aten.threshold_backward(grad_output, x, 0).mul_(2)
        grad_preactivation = x * grad_relu
        if grad_sigmoid is not None:
            grad_preactivation += grad_sigmoid
        torch.ops.aten.sigmoid_backward.grad_input(grad_preactivation, sigmoid, grad_input=grad_preactivation)
        return grad_relu.mul_(sigmoid), grad_preactivation


def sparta_product(x: Tensor, preactivation: Tensor) -> Tensor:
    """Return relu(x) * (2 * sigmoid(preactivation)), differentiable any number of times."""
    result: Tensor = SpartaProduct.apply(x, preactivation)[0]
    return result


def _differentiable_backward(
    x: Tensor, sigmoid: Tensor, grad_output: Tensor | None, grad_sigmoid: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x and the preactivation, by operations that autograd records."""
    slope = sigmoid * (1 - sigmoid)
    if grad_output is None:
        return None, slope * (0 if grad_sigmoid is None else grad_sigmoid)
    grad_relu = 2 * grad_output * (x > 0)
    total = x * grad_relu if grad_sigmoid is None else x * grad_relu + grad_sigmoid
    return grad_relu * sigmoid, total * slope
