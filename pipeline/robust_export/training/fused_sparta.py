"""Sparta and its gradients by the fused CPU kernel, for float32 feature maps in channels_last.

The kernels are those of plugins/core, one pass over memory forward and one backward, called from as many
threads as torch uses. Results equal those of `robust_export.nn.sparta` up to rounding. The backward pass
needs x and the gate.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from robust_export.errors import InvalidValue
from robust_export.kernels.libraries import ort_library, why_no_ort_library
from robust_export.kernels.paths import BUILD_HINT, KERNEL_SIZES
from robust_export.nn.sparta import sparta, sparta_modules


def fuse_sparta(network: nn.Module) -> None:
    """Make the network's Sparta modules compute with `fused_sparta`.

    Raises:
        InvalidValue: if the kernel is not built.
    """
    modules = sparta_modules(network).values()
    if modules:
        _library()
    for module in modules:
        module.function = fused_sparta


def fused_sparta(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return relu(x) * (2 * sigmoid(weight (*) x + bias)), like `sparta`.

    Uses the kernel for float32 [N, C, H, W] in channels_last on a CPU with k of 1, 3, 5 or 7, and `sparta`
    otherwise, within torch.compile and under autocast.

    Raises:
        InvalidValue: if the kernel is not built.
    """
    if torch.compiler.is_compiling() or not _is_supported(x, weight):
        return sparta(x, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, weight, bias)):
        result: Tensor = FusedSparta.apply(x, weight, bias)
        return result
    y = torch.empty_like(x)
    _call_kernel("sparta_forward", weight, bias, x, y, None)  # does not store the gate
    return y


def _is_supported(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.shape[-1] in KERNEL_SIZES
        and x.shape[1] == weight.shape[0]
        and not torch.is_autocast_enabled("cpu")
    )


class FusedSparta(torch.autograd.Function):
    """(x, weight, bias) to y; supports double backward, which torch's own operations compute."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, gate = torch.empty_like(x), torch.empty_like(x)
        _call_kernel("sparta_forward", weight, bias, x, y, gate)
        ctx.save_for_backward(x, weight, bias, gate)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, gate = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient will be differentiated
            return torch.autograd.grad(sparta(x, weight, bias), (x, weight, bias), grad_y, create_graph=True)
        grad_y = grad_y.contiguous(memory_format=torch.channels_last)
        grad_x, grad_parameters = torch.empty_like(x), None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            # bias and weight of each image and channel, [N, C, 1 + k * k]
            grad_parameters = x.new_empty(x.shape[0], x.shape[1], 1 + weight[0].numel())
        _call_kernel("sparta_backward", weight, bias, x, gate, grad_y, grad_x, grad_parameters)
        if grad_parameters is None:
            return grad_x, None, None
        summed = grad_parameters.sum(0)
        return grad_x, summed[:, 1:].reshape(weight.shape), summed[:, 0].clone()


def _call_kernel(name: str, weight: Tensor, bias: Tensor, *per_image: Tensor | None) -> None:
    """Call a function of the library on all images, a range of them per thread.

    Args:
        name: of the function.
        weight, bias: [C, 1, k, k] and [C].
        per_image: tensors whose first dimension is the image; the first is x, [N, C, H, W]. None is a null
        pointer.
    """
    function, parameters = getattr(_library(), name), [weight.contiguous(), bias.contiguous()]
    assert per_image[0] is not None
    n, c, h, w = per_image[0].shape
    sizes = [c, h, w, weight.shape[-1]]
    threads = min(torch.get_num_threads(), n)

    def call(i: int) -> bool:
        first, last = n * i // threads, n * (i + 1) // threads
        tensors = [*parameters, *(t if t is None else t[first:last] for t in per_image)]
        pointers = [None if t is None else t.data_ptr() for t in tensors]
        return bool(function(*pointers, last - first, *sizes))

    succeeded = [call(0)] if threads == 1 else list(_threads(threads).map(call, range(threads)))
    if not all(succeeded):
        raise MemoryError("Sparta's kernel could not allocate memory")


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "sparta")


@cache
def _library() -> ctypes.CDLL:
    path = ort_library()
    if path is None:
        raise InvalidValue(f"train.fused is true, but there is {why_no_ort_library()}")
    library = ctypes.CDLL(str(path))
    for name, pointers in (("sparta_forward", 5), ("sparta_backward", 7)):
        if not hasattr(library, name):
            raise InvalidValue(f"train.fused is true, but {path} is of an earlier release: {BUILD_HINT}")
        getattr(library, name).argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * 5
    return library
