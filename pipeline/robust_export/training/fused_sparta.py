"""Sparta and its gradients in one pass each over float32 planes in channels_last, on a CPU.

The kernels are those of plugins/core, called from as many threads as torch has. They give what
`robust_export.nn.sparta` gives, up to rounding, and keep one plane for the way back.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from robust_export.errors import InvalidValue
from robust_export.kernels.libraries import ort_library, why_no_library
from robust_export.kernels.paths import HOW, KERNEL_SIZES
from robust_export.nn.sparta import sparta, sparta_modules


def fuse_sparta(network: nn.Module) -> None:
    """Let the network's Sparta modules use the kernel wherever it can be used.

    Raises:
        InvalidValue: if it is not built.
    """
    modules = sparta_modules(network).values()
    if modules:
        _library()
    for module in modules:
        module.function = fused_sparta


def fused_sparta(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return relu(x) * (2 * sigmoid(weight (*) x + bias)), as `sparta` does.

    By the kernel for float32 [N, C, H, W] in channels_last on a CPU, with k of 1, 3, 5 or 7; else, within
    torch.compile and under autocast, by `sparta` itself.

    Raises:
        InvalidValue: if the kernel is not built.
    """
    if torch.compiler.is_compiling() or not _fits(x, weight):
        return sparta(x, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, weight, bias)):
        result: Tensor = Fused.apply(x, weight, bias)
        return result
    y = torch.empty_like(x)
    _run("sparta_forward", weight, bias, x, y, None)  # and keep no gate
    return y


def _fits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.shape[-1] in KERNEL_SIZES
        and x.shape[1] == weight.shape[0]
        and not torch.is_autocast_enabled("cpu")
    )


class Fused(torch.autograd.Function):
    """(x, weight, bias) to y; its gradient can be differentiated, by torch's own operations then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, gate = torch.empty_like(x), torch.empty_like(x)
        _run("sparta_forward", weight, bias, x, y, gate)
        ctx.save_for_backward(x, weight, bias, gate)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, gate = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody will differentiate the gradient itself
            return torch.autograd.grad(
                sparta(x, weight, bias), (x, weight, bias), gradient, create_graph=True
            )
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x, of_taps = torch.empty_like(x), None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            of_taps = x.new_empty(x.shape[0], x.shape[1], 1 + weight[0].numel())
        _run("sparta_backward", weight, bias, x, gate, gradient, of_x, of_taps)
        if of_taps is None:
            return of_x, None, None
        summed = of_taps.sum(0)
        return of_x, summed[:, 1:].reshape(weight.shape), summed[:, 0].clone()


def _run(name: str, weight: Tensor, bias: Tensor, *planes: Tensor | None) -> None:
    """Call a function of the library for all images, a range of them a thread."""
    function, taps = getattr(_library(), name), [weight.contiguous(), bias.contiguous()]
    assert planes[0] is not None
    n, c, h, w = planes[0].shape
    size = [c, h, w, weight.shape[-1]]
    threads = min(torch.get_num_threads(), n)

    def part(i: int) -> bool:
        first, last = n * i // threads, n * (i + 1) // threads
        given = [*taps, *(t if t is None else t[first:last] for t in planes)]
        pointers = [None if t is None else t.data_ptr() for t in given]
        return bool(function(*pointers, last - first, *size))

    done = [part(0)] if threads == 1 else list(_threads(threads).map(part, range(threads)))
    if not all(done):
        raise MemoryError("Sparta's kernel had no memory for its work")


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "sparta")


@cache
def _library() -> ctypes.CDLL:
    path = ort_library()
    if path is None:
        raise InvalidValue(f"train.fused is true, and there is {why_no_library()}")
    library = ctypes.CDLL(str(path))
    for name, pointers in (("sparta_forward", 5), ("sparta_backward", 7)):
        if not hasattr(library, name):
            raise InvalidValue(f"train.fused is true, and {path} is of an earlier release: {HOW}")
        getattr(library, name).argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * 5
    return library
