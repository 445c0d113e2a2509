"""Compile the CUDA kernels with NVRTC, which comes in wheels and needs neither nvcc nor a driver.

`disassemble` reads registers, spills and the width of memory accesses from a compiled kernel.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_export.errors import BuildError
from robust_export.kernels.paths import source_folder

ACCESS_BYTES = 16  # of the widest load or store

TYPES = {"float32": ("float", 4), "float16": ("__half", 2), "bfloat16": ("__nv_bfloat16", 2)}
"""C++ name and size in bytes of each element type."""


@dataclass(frozen=True)
class Kernel:
    """One instance of the templates in plugins/core/cuda_kernel.h.

    Attributes:
        type: a key of TYPES.
        k: kernel size of the depthwise convolution.
        vector: elements per load and store in the layout NCHW; 0 for the layout NHWC8.
        add: whether a residual is added to x.
    """

    type: str
    k: int
    vector: int
    add: bool = False

    @property
    def name(self) -> str:
        """The name of the CUDA function, such as sparta_float16_k3_nchw8_add."""
        layout = f"nchw{self.vector}" if self.vector else "nhwc8"
        return f"sparta_{self.type}_k{self.k}_{layout}{'_add' if self.add else ''}"

    @property
    def has_wide_accesses(self) -> bool:
        """Whether feature maps are loaded and stored 128 bits at a time."""
        return not self.vector or self.vector * TYPES[self.type][1] == ACCESS_BYTES

    def source(self) -> str:
        """Return the definition of the kernel in CUDA C++.

        Its parameters are in TensorRT's order: x, [residual,] weight, bias; n, c, h, w; y.
        """
        cpp, add = TYPES[self.type][0], str(self.add).lower()
        inputs = ["x", "residual", "weight", "bias"] if self.add else ["x", "weight", "bias"]
        parameters = ", ".join(f"const {cpp}* {name}" for name in inputs)
        if self.vector:
            min_blocks = f"nchw_min_blocks({self.k})"
            function = f"forward_nchw<{cpp}, {self.k}, {self.vector}, {add}>"
        else:
            min_blocks = f"nhwc8_min_blocks({add})"
            function = f"forward_nhwc8<{cpp}, {self.k}, {add}>"
        return (
            f'extern "C" __global__ void __launch_bounds__(block_threads, {min_blocks}) {self.name}(\n'
            f"    {parameters}, int n, int c, int h, int w, {cpp}* y) {{\n"
            f"  {function}(x, {'residual' if self.add else 'nullptr'}, weight, bias, y, n, c, h, w);\n}}\n"
        )


@dataclass(frozen=True)
class MachineCode:
    """Properties of a compiled kernel, read from cuobjdump."""

    registers: int  # per thread
    stack: int  # bytes per thread
    local: int  # bytes per thread of local memory, which spilled registers use
    accesses: frozenset[str]  # load and store instructions, such as LDG.E.128.CONSTANT


def program(kernels: Iterable[Kernel]) -> str:
    """Return the source of kernels for NVRTC or, after plugins/tests/cuda_on_cpu.h, for g++."""
    includes = "".join(f"#include {name}\n" for name in ("<cuda_bf16.h>", "<cuda_fp16.h>", '"cuda_kernel.h"'))
    definitions = "\n".join(kernel.source() for kernel in kernels)
    return f"{includes}\nusing namespace sparta::cuda;\n\n{definitions}"


def compile_kernels(kernels: Iterable[Kernel], architecture: str) -> bytes:
    """Compile kernels to a cubin or to PTX.

    Args:
        kernels: the kernels of one program.
        architecture: "sm_80" for a cubin of that architecture, "compute_80" for PTX.

    Raises:
        BuildError: if NVRTC or CUDA's headers are missing, or the compilation fails.
    """
    nvrtc, (major, _) = _load_nvrtc()
    folders = [source_folder() / "core", cuda_headers(major)]
    options = [f"--gpu-architecture={architecture}", "--std=c++17", *(f"-I{folder}" for folder in folders)]
    _, handle = nvrtc.nvrtcCreateProgram(program(kernels).encode(), b"sparta.cu", 0, [], [])
    try:
        (status,) = nvrtc.nvrtcCompileProgram(handle, len(options), [option.encode() for option in options])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _read_output(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, handle)
            lines = log.rstrip(b"\0").decode(errors="replace").strip().splitlines()
            raise BuildError(f"NVRTC refuses the kernels for {architecture}: " + "\n  ".join(lines[:6]))
        if architecture.startswith("compute"):
            return _read_output(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, handle).rstrip(b"\0")
        return _read_output(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, handle)
    finally:
        nvrtc.nvrtcDestroyProgram(handle)


def nvrtc_version() -> tuple[int, int]:
    """Return NVRTC's CUDA version. An older driver cannot load PTX made by it.

    Raises:
        BuildError: if NVRTC is not installed.
    """
    return _load_nvrtc()[1]


def driver_version() -> tuple[int, int] | None:
    """Return the CUDA version that this machine's driver supports, None without a driver."""
    try:
        from cuda.bindings import driver

        status, version = driver.cuDriverGetVersion()
    except (ImportError, RuntimeError):
        return None
    return None if status else (version // 1000, version % 1000 // 10)


def _load_nvrtc() -> tuple[Any, tuple[int, int]]:
    try:
        from cuda.bindings import nvrtc

        _, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # no bindings, no library
        raise BuildError("NVRTC is not installed: pip install cuda-bindings nvidia-cuda-nvrtc") from error
    return nvrtc, (major, minor)


def _read_output(get_size: Callable[[Any], Any], get: Callable[[Any, bytearray], Any], handle: Any) -> bytes:
    """Return an output of NVRTC, read by a pair of its functions for size and contents."""
    _, size = get_size(handle)
    buffer = bytearray(size)
    get(handle, buffer)
    return bytes(buffer)


def cuda_headers(major: int) -> Path:
    """Return a folder with cuda_fp16.h: of CUDA_HOME, NVIDIA's wheels or /usr/local/cuda.

    Args:
        major: the CUDA version whose wheels are preferred.

    Raises:
        BuildError: if there is none.
    """
    folders = [Path(os.environ["CUDA_HOME"]) / "include"] if os.environ.get("CUDA_HOME") else []
    for root in _nvidia_wheels():
        folders += [root / f"cu{major}" / "include", *sorted(root.glob("*/include"))]
    for folder in [*folders, Path("/usr/local/cuda/include")]:
        if (folder / "cuda_fp16.h").is_file() and (folder / "cuda_bf16.h").is_file():
            return folder
    raise BuildError("CUDA's header cuda_fp16.h was not found: pip install nvidia-cuda-runtime")


def disassemble(cubin: bytes) -> dict[str, MachineCode]:
    """Return the properties of every kernel in a cubin, by name.

    Raises:
        BuildError: if cuobjdump is not installed.
    """
    command = cuobjdump()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cubin"
        file.write_bytes(cubin)
        usage, code = (_run_cuobjdump(command, option, file) for option in ("-res-usage", "-sass"))
    result = {}
    functions = re.split(r"Function : (\S+)", code)
    for name, body in zip(functions[1::2], functions[2::2], strict=True):
        match = re.search(rf"Function {name}:\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        assert match is not None
        accesses = frozenset(re.findall(r"\b(?:LD|ST)[GLS]?(?:\.[A-Z0-9]+)+|\b(?:LDL|STL)\b", body))
        result[name] = MachineCode(int(match[1]), int(match[2]), int(match[3]), accesses)
    return result


def _run_cuobjdump(command: str, option: str, file: Path) -> str:
    return subprocess.run([command, option, file], capture_output=True, text=True, check=True).stdout


def cuobjdump() -> str:
    """Return the path of cuobjdump, of NVIDIA's wheel or on the PATH.

    Raises:
        BuildError: if there is none.
    """
    for root in _nvidia_wheels():
        programs = sorted(root.glob("*/bin/cuobjdump"))
        if programs:
            return str(programs[-1])
    command = shutil.which("cuobjdump")
    if command is None:
        raise BuildError("there is no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return command


def _nvidia_wheels() -> list[Path]:
    """Return the folders nvidia/ in which NVIDIA's wheels install, such as nvidia/cu13."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(root) for root in (spec and spec.submodule_search_locations) or []]
