"""Sparta as ahead-of-time (AOT) plugins: the engine holds the compiled kernels and needs no library to run.

They use `tensorrt.plugin` (TensorRT 10.8 and later; not TensorRT for RTX). During a build TensorRT calls back
for a kernel, its launch configuration and its scalar arguments; the engine launches the kernel with inputs,
scalars and outputs, in this order. The kernels are those of the plugin library, compiled by NVRTC; see
plugins/core/cuda_geometry.h for the work of a thread. TensorRT's buffers are aligned to 256 bytes, so
128-bit accesses depend on the width alone.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any

from robust_export.errors import ArtifactError, BuildError
from robust_export.export.tensorrt.graph import PLUGIN_NAMESPACES
from robust_export.kernels.nvrtc import (
    ACCESS_BYTES,
    TYPES,
    Kernel,
    compile_kernels,
    driver_version,
    nvrtc_version,
)
from robust_export.nn.onnx_operator import OPERATOR
from robust_export.runtimes.tensorrt.gpu_info import gpu_capability
from robust_export.runtimes.tensorrt.variants import Variant

BLOCK_THREADS, COLUMNS_PER_THREAD = 128, 2  # as in plugins/core/cuda_geometry.h
INPUTS = {
    OPERATOR: ("x", "weight", "bias"),
    f"{OPERATOR}Add": ("x", "residual", "weight", "bias"),
}
DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
COMBINATION_TYPES = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16"}  # as AutoTuneCombination writes them

_registered: set[str] = set()


def register(variant: Variant) -> None:
    """Register the AOT plugins Sparta and SpartaAdd, once per process.

    Raises:
        ArtifactError: if the variant has no AOT plugins, or NVRTC is missing or newer than the driver.
    """
    check_compiler()
    if variant.trt.__name__ in _registered:
        return
    try:
        module = importlib.import_module(f"{variant.trt.__name__}.plugin")
    except ImportError:
        module = None
    if not hasattr(module, "aot_impl"):
        raise ArtifactError(
            f"{variant.title} has no ahead-of-time plugins; use TensorRT 10.8 or later "
            "(--flavor tensorrt) or --plugin library"
        )
    for name, inputs in INPUTS.items():
        _define(module, f"{PLUGIN_NAMESPACES['aot']}::{name}", inputs, variant)
    _registered.add(variant.trt.__name__)


def check_compiler() -> None:
    """Raise ArtifactError if NVRTC is missing, or compiles for a newer CUDA than the driver's."""
    try:
        nvrtc, driver = nvrtc_version(), driver_version()
    except BuildError as error:
        raise ArtifactError(f"--plugin aot compiles the kernels: {error}, or use --plugin library") from error
    if driver and driver < nvrtc:
        nvrtc_text, driver_text = (".".join(map(str, version)) for version in (nvrtc, driver))
        raise ArtifactError(
            f"NVRTC is from CUDA {nvrtc_text}, but the driver supports CUDA {driver_text} at most and cannot "
            f"load its PTX. Update the driver, install an NVRTC of CUDA {driver[0]}, or use --plugin library"
        )


def _define(module: Any, plugin_id: str, inputs: Sequence[str], variant: Variant) -> None:
    """Register a plugin's three callbacks: output description, supported formats, kernel."""
    weight = inputs.index("weight")

    def output_desc(*tensors: Any) -> Any:
        return tensors[0].like()

    def formats(*tensors: Any) -> list[Any]:
        layouts = ["LINEAR"]
        if tensors[0].dtype.name != "FLOAT" and tensors[weight].shape[3] <= 3:
            layouts.append("HWC8")
        types = ", ".join([COMBINATION_TYPES[tensors[0].dtype.name]] * (len(inputs) + 1))
        constants = ["LINEAR"] * 2  # weight, bias
        return [
            module.AutoTuneCombination(types, ", ".join([*[layout] * weight, *constants, layout]))
            for layout in layouts
        ]

    def kernel(*tensors: Any) -> tuple[str, bytes, Any, Any]:
        try:
            return _launch(module, tensors[0], tensors[weight], add=weight == 2)
        except Exception as error:  # TensorRT discards it and builds no engine
            variant.logger.log(variant.trt.ILogger.Severity.ERROR, f"Sparta's plugin: {error}")
            raise

    tensors = dict.fromkeys(inputs, module.TensorDesc)
    output = {"outputs": tuple[module.TensorDesc]}
    combinations = list[module.AutoTuneCombination]
    code = tuple[str, bytes, module.KernelLaunchParams, module.SymIntExprs]
    module.register(plugin_id)(_signed(output_desc, tensors, module.TensorDesc))
    module.autotune(plugin_id)(_signed(formats, tensors | output, combinations))
    module.aot_impl(plugin_id)(_signed(kernel, tensors | output | {"tactic": int}, code))


def _signed(function: Callable[..., Any], arguments: dict[str, Any], returns: Any) -> Callable[..., Any]:
    """Set the function's signature, from which TensorRT reads names and types of inputs and outputs."""
    parameters = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in arguments.items()
    ]
    function.__signature__ = Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
    return function


def _launch(module: Any, x: Any, weight: Any, *, add: bool) -> tuple[str, bytes, Any, Any]:
    """Return the kernel's name, its PTX, the launch, and the scalars n, c, h, w as symbolic expressions."""
    n, c, h, w = x.shape_expr
    nhwc8 = x.format.name == "HWC8"
    kernel = choose_kernel(DTYPES[x.dtype.name], weight.shape[3], x.shape[3], nhwc8=nhwc8, add=add)
    launch = module.KernelLaunchParams()
    launch.grid_x = block_count(kernel, n, c, h, w, module.cdiv)
    launch.block_x = BLOCK_THREADS
    sizes = module.SymIntExprs.from_tuple([module.SymInt32(size) for size in (n, c, h, w)])
    return kernel.name, _ptx(kernel), launch, sizes


def choose_kernel(dtype: str, k: int, width: int, *, nhwc8: bool, add: bool) -> Kernel:
    """Return the CUDA kernel for a dtype, a k x k weight, and rows of `width` elements.

    Args:
        width: -1 if it is unknown until the engine runs.
        nhwc8: the layout is HWC8, not LINEAR.

    Raises:
        ArtifactError: if k is not supported.
    """
    if k not in (1, 3, 5, 7):
        raise ArtifactError(f"Sparta's weight has {k} columns; expected 1, 3, 5 or 7")
    size = TYPES[dtype][1]
    vector = next(
        (access // size for access in (ACCESS_BYTES, 4) if width > 0 and width * size % access == 0), 1
    )
    return Kernel(dtype, k, 0 if nhwc8 else vector, add)


def block_count(kernel: Kernel, n: Any, c: Any, h: Any, w: Any, ceil_div: Callable[[Any, int], Any]) -> Any:
    """Return the number of blocks for feature maps [n, c, h, w], as in plugins/core/cuda_geometry.h.

    Args:
        n, c, h, w: integers or symbolic expressions of TensorRT.
        ceil_div: division rounded up, for these.
    """
    if kernel.vector:
        rows = 2 if kernel.vector == 8 or kernel.k > 3 else 4  # rows_per_thread in cuda_geometry.h
        threads = n * c * ceil_div(h, rows) * (w // kernel.vector)
    else:
        threads = n * h * ceil_div(w, COLUMNS_PER_THREAD) * ceil_div(c, 8)
    return ceil_div(threads, BLOCK_THREADS)


@functools.cache
def _ptx(kernel: Kernel) -> bytes:
    """Return the PTX of a kernel for this machine's GPU, which is the engine's."""
    capability = gpu_capability()
    if capability is None:
        raise ArtifactError("kernels are compiled for this machine's GPU, but CUDA finds none")
    return compile_kernels([kernel], f"compute_{capability[0]}{capability[1]}")
