"""Convolution and average pooling for ONNX's reference evaluator, by matrix products.

The evaluator's own pool in Python loops and multiply half precision without BLAS, which is slow. Both of
these sum in float32 whatever the format, and round once, as hardware does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]
Numbers = Sequence[int]

WINDOWS = 1 << 24  # values of unfolded windows that are held at once, 64 MiB of float32


class Conv(OpRun):
    """ONNX's Conv: x [N, C, *D], weight [M, C / group, *K], bias [M] or none to [N, M, *E], of x's format."""

    def _run(
        self, x: Array, weight: Array, bias: Array | None = None, *, auto_pad: str = "NOTSET",
        dilations: Numbers | None = None, group: int = 1, kernel_shape: Numbers | None = None,  # noqa: ARG002
        pads: Numbers | None = None, strides: Numbers | None = None,
    ) -> tuple[Array]:  # fmt: skip
        kernel, rank = weight.shape[2:], x.ndim - 2
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        margins = _margins(x.shape[2:], kernel, strides, dilations, auto_pad, pads)
        padded = np.pad(x.astype(np.float32), [(0, 0), (0, 0), *margins])
        matrix = weight.astype(np.float32).reshape(group, len(weight) // group, -1)
        step = max(1, WINDOWS * math.prod(strides) // (math.prod(padded.shape[1:]) * math.prod(kernel)))
        parts = [
            _products(_windows(padded[start : start + step], kernel, strides, dilations), matrix)
            for start in range(0, len(x), step)
        ]
        y = np.concatenate(parts)
        if bias is not None:
            y += bias.astype(np.float32).reshape(-1, *[1] * rank)
        return (y.astype(x.dtype),)


class AveragePool(OpRun):
    """ONNX's AveragePool: x [N, C, *D] to [N, C, *E], of x's format."""

    def _run(
        self, x: Array, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
        dilations: Numbers | None = None, kernel_shape: Numbers, pads: Numbers | None = None,
        strides: Numbers | None = None,
    ) -> tuple[Array]:  # fmt: skip
        rank = x.ndim - 2
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        margins = _margins(x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads)
        counted = np.ones(x.shape[2:], np.float32)
        counted = np.pad(counted, margins, constant_values=float(bool(count_include_pad)))
        settings = zip(x.shape[2:], margins, kernel_shape, strides, dilations, strict=True)
        beyond = [(0, _beyond(*one) if ceil_mode else 0) for one in settings]  # never counted
        padded = np.pad(np.pad(x.astype(np.float32), [(0, 0), (0, 0), *margins]), [(0, 0), (0, 0), *beyond])
        axes = tuple(range(-rank, 0))
        total = _windows(padded, kernel_shape, strides, dilations).sum(axes)
        number = _windows(np.pad(counted, beyond)[None, None], kernel_shape, strides, dilations).sum(axes)
        return ((total / number).astype(x.dtype),)


OPERATORS = [Conv, AveragePool]


def _windows(x: Array, kernel: Numbers, strides: Numbers, dilations: Numbers) -> Array:
    """Return a view [N, C, *E, *K] of the windows of x [N, C, *D]."""
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, spans, tuple(range(2, x.ndim)))
    steps = (slice(None, None, step) for step in (*strides, *dilations))
    return view[(slice(None), slice(None), *steps)]


def _products(windows: Array, matrix: Array) -> Array:
    """Return windows [N, C, *E, *K] times matrix [group, M / group, C / group * prod(K)]: [N, M, *E]."""
    rank, (group, rows, inner) = (windows.ndim - 2) // 2, matrix.shape
    count, out = len(windows), windows.shape[2 : 2 + rank]
    split = windows.reshape(count, group, -1, *windows.shape[2:])  # [N, group, C / group, *E, *K]
    order = (1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
    flat = split.transpose(order).reshape(group, -1, inner)
    y = flat @ matrix.transpose(0, 2, 1)  # [group, N * prod(E), M / group]
    y = y.reshape(group, count, *out, rows)
    return y.transpose(1, 0, y.ndim - 1, *range(2, 2 + rank)).reshape(count, group * rows, *out)


def _margins(
    size: Numbers, kernel: Numbers, strides: Numbers, dilations: Numbers, auto_pad: str, pads: Numbers | None
) -> list[tuple[int, int]]:
    """Return the padding before and after every axis, as ONNX defines `auto_pad` and `pads`."""
    rank = len(kernel)
    if not auto_pad.startswith("SAME"):
        given = list(pads or [0] * 2 * rank) if auto_pad != "VALID" else [0] * 2 * rank
        return list(zip(given[:rank], given[rank:], strict=True))
    result = []
    for extent, k, step, d in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-extent // step) - 1) * step + (k - 1) * d + 1 - extent)
        less, more = total // 2, total - total // 2
        result.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
    return result


def _beyond(extent: int, margin: tuple[int, int], kernel: int, step: int, dilation: int) -> int:
    """Return how far the last window of `ceil_mode` reaches over the end of a padded axis.

    A window that would start in the padding after the image is dropped, as PyTorch drops it.
    """
    span, padded = (kernel - 1) * dilation + 1, extent + sum(margin)
    last = -(-(padded - span) // step)  # where the last window starts, in steps
    if last * step >= extent + margin[0]:
        last -= 1
    return max(0, last * step + span - padded)
