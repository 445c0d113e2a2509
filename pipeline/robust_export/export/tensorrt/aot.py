"""Sparta as quick plugins, compiled ahead of time: an engine holds the kernels and needs no library to run.

TensorRT asks for the kernel, its launch and its scalars while it builds (`tensorrt.plugin`, 10.8 and later;
TensorRT for RTX has no such thing), and starts it with inputs, scalars and outputs, in this order. They are
the library's kernels, compiled by NVRTC; what a thread does is in plugins/core/cuda_geometry.h. Buffers of
TensorRT and its callers are aligned to 256 bytes: 128-bit accesses depend on the width alone.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any

from robust_export.errors import ArtifactError, BuildError
from robust_export.export.tensorrt.graph import NAMESPACES
from robust_export.kernels.nvrtc import TYPES, WIDEST, Kernel, compile_kernels, driver_version, nvrtc_version
from robust_export.nn.operator import OPERATOR
from robust_export.runtimes.tensorrt.gpu_info import gpu
from robust_export.runtimes.tensorrt.variants import Variant

BLOCK, STRIP = 128, 2  # block_threads and strip of plugins/core/cuda_geometry.h
INPUTS = {
    OPERATOR: ("x", "weight", "bias"),
    f"{OPERATOR}Add": ("x", "residual", "weight", "bias"),
}
DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
NAMES = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16"}  # of types, in a combination's words

_registered: set[str] = set()


def register(flavor: Variant) -> None:
    """Register the quick plugins Sparta and SpartaAdd, once a process.

    Raises:
        ArtifactError: if the flavor has no quick plugins, NVRTC is missing, or the driver is older than it.
    """
    check_compiler()
    if flavor.trt.__name__ in _registered:
        return
    try:
        module = importlib.import_module(f"{flavor.trt.__name__}.plugin")
    except ImportError:
        module = None
    if not hasattr(module, "aot_impl"):
        raise ArtifactError(
            f"{flavor.title} has no plugins that are compiled ahead of time; TensorRT 10.8 and later has: "
            "--flavor tensorrt, or use --plugin library"
        )
    for name, inputs in INPUTS.items():
        _define(module, f"{NAMESPACES['aot']}::{name}", inputs, flavor)
    _registered.add(flavor.trt.__name__)


def check_compiler() -> None:
    """Raise ArtifactError if the kernels cannot be compiled here, or not for this machine's driver."""
    try:
        ours, drivers = nvrtc_version(), driver_version()
    except BuildError as error:
        raise ArtifactError(f"--plugin aot compiles the kernels: {error}, or use --plugin library") from error
    if drivers and drivers < ours:
        raise ArtifactError(
            f"NVRTC is of CUDA {_dotted(ours)} and the driver here takes CUDA {_dotted(drivers)} at most: "
            f"it cannot load what NVRTC writes. Update it, or install an NVRTC of CUDA {drivers[0]}, or use "
            "--plugin library"
        )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _define(module: Any, plugin_id: str, inputs: Sequence[str], flavor: Variant) -> None:
    """Give TensorRT the three functions of a plugin: what it returns, which formats it takes, its kernel."""
    place = inputs.index("weight")

    def describe(*tensors: Any) -> Any:
        return tensors[0].like()

    def formats(*tensors: Any) -> list[Any]:
        layouts = ["LINEAR"]
        if tensors[0].dtype.name != "FLOAT" and tensors[place].shape[3] <= 3:
            layouts.append("HWC8")
        types = ", ".join([NAMES[tensors[0].dtype.name]] * (len(inputs) + 1))
        constants = ["LINEAR"] * 2  # weight, bias
        return [
            module.AutoTuneCombination(types, ", ".join([*[layout] * place, *constants, layout]))
            for layout in layouts
        ]

    def kernel(*tensors: Any) -> tuple[str, bytes, Any, Any]:
        try:
            return _launch(module, tensors[0], tensors[place], add=place == 2)
        except Exception as error:  # TensorRT says nothing of it, and builds nothing
            flavor.logger.log(flavor.trt.ILogger.Severity.ERROR, f"Sparta's plugin: {error}")
            raise

    tensors = dict.fromkeys(inputs, module.TensorDesc)
    output = {"outputs": tuple[module.TensorDesc]}
    combinations = list[module.AutoTuneCombination]
    code = tuple[str, bytes, module.KernelLaunchParams, module.SymIntExprs]
    module.register(plugin_id)(_signed(describe, tensors, module.TensorDesc))
    module.autotune(plugin_id)(_signed(formats, tensors | output, combinations))
    module.aot_impl(plugin_id)(_signed(kernel, tensors | output | {"tactic": int}, code))


def _signed(function: Callable[..., Any], arguments: dict[str, Any], returns: Any) -> Callable[..., Any]:
    """Give a function the signature that TensorRT reads its inputs from."""
    parameters = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in arguments.items()
    ]
    function.__signature__ = Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
    return function


def _launch(module: Any, x: Any, weight: Any, *, add: bool) -> tuple[str, bytes, Any, Any]:
    """Return the kernel's name and PTX, its launch, and the scalars n, c, h, w as functions of the shape."""
    n, c, h, w = x.shape_expr
    channels8 = x.format.name == "HWC8"
    chosen = choose(DTYPES[x.dtype.name], weight.shape[3], x.shape[3], channels8=channels8, add=add)
    launch = module.KernelLaunchParams()
    launch.grid_x = blocks(chosen, n, c, h, w, module.cdiv)
    launch.block_x = BLOCK
    sizes = module.SymIntExprs.from_tuple([module.SymInt32(size) for size in (n, c, h, w)])
    return chosen.name, _ptx(chosen), launch, sizes


def choose(dtype: str, k: int, width: int, *, channels8: bool, add: bool) -> Kernel:
    """Return the kernel for a type, a size of kernel, and rows of `width` elements (-1: not known yet).

    Raises:
        ArtifactError: if there is none.
    """
    if k not in (1, 3, 5, 7):
        raise ArtifactError(f"Sparta's weight is of {k} columns; expected 1, 3, 5 or 7")
    size = TYPES[dtype][1]
    vector = next((access // size for access in (WIDEST, 4) if width > 0 and width * size % access == 0), 1)
    return Kernel(dtype, k, 0 if channels8 else vector, add)


def blocks(kernel: Kernel, n: Any, c: Any, h: Any, w: Any, ceil_div: Callable[[Any, int], Any]) -> Any:
    """Return how many blocks of BLOCK threads a plane [n, c, h, w] needs: as cuda_geometry.h counts them.

    Args:
        n, c, h, w: integers, or TensorRT's expressions of them.
    """
    if kernel.vector:
        rows = 2 if kernel.vector == 8 or kernel.k > 3 else 4  # rows_of
        threads = n * c * ceil_div(h, rows) * (w // kernel.vector)
    else:
        threads = n * h * ceil_div(w, STRIP) * ceil_div(c, 8)
    return ceil_div(threads, BLOCK)


@functools.cache
def _ptx(kernel: Kernel) -> bytes:
    """Return a kernel compiled for the GPU that the engine is for: the one that is there."""
    here = gpu()
    if here is None:
        raise ArtifactError("there is no GPU that CUDA sees, so that none can be compiled for")
    return compile_kernels([kernel], f"compute_{here[0]}{here[1]}")
