"""Conv and AveragePool for ONNX's reference evaluator, in vectorised NumPy.

The evaluator's own AveragePool loops in Python, and its own Conv multiplies half precision without BLAS; both
are slow. The operators below sum in float32 for every input type and round the result once, as hardware does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]
Ints = Sequence[int]

MAX_UNFOLDED = 1 << 24  # values of unfolded windows in memory at once, 64 MiB of float32


class Conv(OpRun):
    """ONNX's Conv: x [N, C, *D], weight [M, C / group, *K], optional bias [M]; y [N, M, *E] of x's type."""

    def _run(
        self, x: Array, weight: Array, bias: Array | None = None, *, auto_pad: str = "NOTSET",
        dilations: Ints | None = None, group: int = 1, kernel_shape: Ints | None = None,  # noqa: ARG002
        pads: Ints | None = None, strides: Ints | None = None,
    ) -> tuple[Array]:  # fmt: skip
        kernel, rank = weight.shape[2:], x.ndim - 2
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        padding = _padding(x.shape[2:], kernel, strides, dilations, auto_pad, pads)
        padded = np.pad(x.astype(np.float32), [(0, 0), (0, 0), *padding])
        matrix = weight.astype(np.float32).reshape(group, len(weight) // group, -1)
        batch = max(1, MAX_UNFOLDED * math.prod(strides) // (math.prod(padded.shape[1:]) * math.prod(kernel)))
        parts = [
            _matmul(_windows(padded[start : start + batch], kernel, strides, dilations), matrix)
            for start in range(0, len(x), batch)
        ]
        y = np.concatenate(parts)
        if bias is not None:
            y += bias.astype(np.float32).reshape(-1, *[1] * rank)
        return (y.astype(x.dtype),)


class AveragePool(OpRun):
    """ONNX's AveragePool: x [N, C, *D]; y [N, C, *E] of x's type."""

    def _run(
        self, x: Array, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
        dilations: Ints | None = None, kernel_shape: Ints, pads: Ints | None = None,
        strides: Ints | None = None,
    ) -> tuple[Array]:  # fmt: skip
        rank = x.ndim - 2
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        padding = _padding(x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads)
        weights = np.ones(x.shape[2:], np.float32)  # 1 where a position counts for the average
        weights = np.pad(weights, padding, constant_values=float(bool(count_include_pad)))
        axes_settings = zip(x.shape[2:], padding, kernel_shape, strides, dilations, strict=True)
        overhang = [(0, _ceil_mode_overhang(*one) if ceil_mode else 0) for one in axes_settings]
        padded = np.pad(np.pad(x.astype(np.float32), [(0, 0), (0, 0), *padding]), [(0, 0), (0, 0), *overhang])
        axes = tuple(range(-rank, 0))
        total = _windows(padded, kernel_shape, strides, dilations).sum(axes)
        count = _windows(np.pad(weights, overhang)[None, None], kernel_shape, strides, dilations).sum(axes)
        return ((total / count).astype(x.dtype),)


OPERATORS = [Conv, AveragePool]


def _windows(x: Array, kernel: Ints, strides: Ints, dilations: Ints) -> Array:
    """Return a view [N, C, *E, *K] of the windows of x [N, C, *D]."""
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, spans, tuple(range(2, x.ndim)))
    steps = (slice(None, None, step) for step in (*strides, *dilations))
    return view[(slice(None), slice(None), *steps)]


def _matmul(windows: Array, matrix: Array) -> Array:
    """Multiply windows [N, C, *E, *K] by matrix [group, M / group, C / group * prod(K)] to [N, M, *E]."""
    rank, (group, rows, inner) = (windows.ndim - 2) // 2, matrix.shape
    count, out = len(windows), windows.shape[2 : 2 + rank]
    split = windows.reshape(count, group, -1, *windows.shape[2:])  # [N, group, C / group, *E, *K]
    order = (1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
    flat = split.transpose(order).reshape(group, -1, inner)
    y = flat @ matrix.transpose(0, 2, 1)  # [group, N * prod(E), M / group]
    y = y.reshape(group, count, *out, rows)
    return y.transpose(1, 0, y.ndim - 1, *range(2, 2 + rank)).reshape(count, group * rows, *out)


def _padding(
    size: Ints, kernel: Ints, strides: Ints, dilations: Ints, auto_pad: str, pads: Ints | None
) -> list[tuple[int, int]]:
    """Return the padding before and after each axis, as ONNX defines `auto_pad` and `pads`."""
    rank = len(kernel)
    if not auto_pad.startswith("SAME"):
        given = list(pads or [0] * 2 * rank) if auto_pad != "VALID" else [0] * 2 * rank
        return list(zip(given[:rank], given[rank:], strict=True))
    result = []
    for length, k, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-length // stride) - 1) * stride + (k - 1) * dilation + 1 - length)
        smaller, larger = total // 2, total - total // 2
        result.append((smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller))
    return result


def _ceil_mode_overhang(
    length: int, padding: tuple[int, int], kernel: int, stride: int, dilation: int
) -> int:
    """Return by how much the last window of `ceil_mode` exceeds a padded axis.

    A window that would start in the padding after the image is dropped, as in PyTorch.
    """
    span, padded = (kernel - 1) * dilation + 1, length + sum(padding)
    last = -(-(padded - span) // stride)  # index of the last window
    if last * stride >= length + padding[0]:
        last -= 1
    return max(0, last * stride + span - padded)
