"""The kernels for GPUs compiled by NVRTC, which comes in wheels and needs neither nvcc nor a driver.

What it makes is what a GPU would run; `machine_code` reads from it what a profiler would be asked first:
spills, registers, the width of loads and stores.
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
from robust_export.kernels.paths import sources

WIDEST = 16  # bytes of one access

TYPES = {"float32": ("float", 4), "float16": ("__half", 2), "bfloat16": ("__nv_bfloat16", 2)}
"""C++'s name and the bytes of each storage type."""


@dataclass(frozen=True)
class Kernel:
    """One instance of the templates in plugins/core/cuda_kernel.h.

    Attributes:
        vector: elements of one access of a plane, 0 for the layout channels8.
        add: whether a residual is added first.
    """

    type: str
    k: int
    vector: int
    add: bool = False

    @property
    def name(self) -> str:
        layout = f"planes{self.vector}" if self.vector else "channels8"
        return f"sparta_{self.type}_k{self.k}_{layout}{'_add' if self.add else ''}"

    @property
    def wide(self) -> bool:
        """Whether its loads and stores of planes are of 128 bits."""
        return not self.vector or self.vector * TYPES[self.type][1] == WIDEST

    def source(self) -> str:
        """Return its definition in CUDA C++, under its name.

        Its arguments are in TensorRT's order: x, [residual,] weight, bias; n, c, h, w; y.
        """
        cpp, add = TYPES[self.type][0], str(self.add).lower()
        inputs = ["x", "residual", "weight", "bias"] if self.add else ["x", "weight", "bias"]
        given = ", ".join(f"const {cpp}* {name}" for name in inputs)
        if self.vector:
            bound, body = f"plane_blocks_resident({self.k})", f"planes<{cpp}, {self.k}, {self.vector}, {add}>"
        else:
            bound, body = f"channel_blocks_resident({add})", f"channels8<{cpp}, {self.k}, {add}>"
        return (
            f'extern "C" __global__ void __launch_bounds__(block_threads, {bound}) {self.name}(\n'
            f"    {given}, int n, int c, int h, int w, {cpp}* y) {{\n"
            f"  {body}(x, {'residual' if self.add else 'nullptr'}, weight, bias, y, n, c, h, w);\n}}\n"
        )


@dataclass(frozen=True)
class MachineCode:
    """What a compiled kernel takes and does, as cuobjdump shows it."""

    registers: int
    stack: int  # bytes of a thread
    local: int  # likewise; spills are there
    accesses: frozenset[str]  # its instructions that load and store, such as LDG.E.128.CONSTANT


def every_kernel() -> list[Kernel]:
    """Return all the kernels that plugins/core/cuda_launch.cu chooses among."""
    kernels = []
    for name, (_, size) in TYPES.items():
        for k in (1, 3, 5, 7):
            vectors = {WIDEST // size, 4 // size, 1}
            if size == 2 and k <= 3:
                vectors.add(0)
            kernels += [Kernel(name, k, v, add) for v in sorted(vectors) for add in (False, True)]
    return kernels


def program(kernels: Iterable[Kernel]) -> str:
    """Return the source of kernels, for NVRTC and, with plugins/tests/cuda_on_cpu.h before it, for g++."""
    included = "".join(f"#include {name}\n" for name in ("<cuda_bf16.h>", "<cuda_fp16.h>", '"cuda_kernel.h"'))
    bodies = "\n".join(kernel.source() for kernel in kernels)
    return f"{included}\nusing namespace sparta::cuda;\n\n{bodies}"


def compile_kernels(kernels: Iterable[Kernel], architecture: str) -> bytes:
    """Return the cubin, or the PTX, of kernels.

    Args:
        architecture: "sm_80" for a cubin of that GPU, "compute_80" for PTX from there on.

    Raises:
        BuildError: if NVRTC or CUDA's headers are missing, or the compiler refuses.
    """
    nvrtc, (major, _) = _load()
    folders = [sources() / "core", cuda_headers(major)]
    options = [f"--gpu-architecture={architecture}", "--std=c++17", *(f"-I{folder}" for folder in folders)]
    given = [option.encode() for option in options]
    _, handle = nvrtc.nvrtcCreateProgram(program(kernels).encode(), b"sparta.cu", 0, [], [])
    try:
        (status,) = nvrtc.nvrtcCompileProgram(handle, len(given), given)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, handle)
            lines = log.rstrip(b"\0").decode(errors="replace").strip().splitlines()
            raise BuildError(f"NVRTC refuses the kernels for {architecture}: " + "\n  ".join(lines[:6]))
        if architecture.startswith("compute"):
            return _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, handle).rstrip(b"\0")
        return _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, handle)
    finally:
        nvrtc.nvrtcDestroyProgram(handle)


def nvrtc_version() -> tuple[int, int]:
    """Return the version of CUDA that NVRTC is of: a driver older than it takes none of its PTX.

    Raises:
        BuildError: if there is no NVRTC.
    """
    return _load()[1]


def driver_version() -> tuple[int, int] | None:
    """Return the version of CUDA that this machine's driver knows; None where there is no driver."""
    try:
        from cuda.bindings import driver

        status, version = driver.cuDriverGetVersion()
    except (ImportError, RuntimeError):
        return None
    return None if status else (version // 1000, version % 1000 // 10)


def _load() -> tuple[Any, tuple[int, int]]:
    try:
        from cuda.bindings import nvrtc

        _, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # the binding, the library
        raise BuildError("NVRTC is not installed: pip install cuda-bindings nvidia-cuda-nvrtc") from error
    return nvrtc, (major, minor)


def _text(get_size: Callable[[Any], Any], get: Callable[[Any, bytearray], Any], handle: Any) -> bytes:
    _, size = get_size(handle)
    text = bytearray(size)
    get(handle, text)
    return bytes(text)


def cuda_headers(major: int) -> Path:
    """Return a folder with cuda_fp16.h: of the toolkit in CUDA_HOME, of NVIDIA's wheels, or /usr/local/cuda.

    Args:
        major: the version of CUDA whose wheels are looked at first.

    Raises:
        BuildError: if there is none.
    """
    places = [Path(os.environ["CUDA_HOME"]) / "include"] if os.environ.get("CUDA_HOME") else []
    for root in _wheels():
        own = root / f"cu{major}" / "include"
        places += [own, *sorted(root.glob("*/include"))]
    for place in [*places, Path("/usr/local/cuda/include")]:
        if (place / "cuda_fp16.h").is_file() and (place / "cuda_bf16.h").is_file():
            return place
    raise BuildError("CUDA's header cuda_fp16.h was not found: pip install nvidia-cuda-runtime")


def machine_code(cubin: bytes) -> dict[str, MachineCode]:
    """Return what every kernel in a cubin is like, by its name.

    Raises:
        BuildError: if there is no cuobjdump.
    """
    command = cuobjdump()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cubin"
        file.write_bytes(cubin)
        usage, code = (_says(command, option, file) for option in ("-res-usage", "-sass"))
    result = {}
    bodies = re.split(r"Function : (\S+)", code)
    for name, body in zip(bodies[1::2], bodies[2::2], strict=True):
        taken = re.search(rf"Function {name}:\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        assert taken is not None
        accesses = frozenset(re.findall(r"\b(?:LD|ST)[GLS]?(?:\.[A-Z0-9]+)+|\b(?:LDL|STL)\b", body))
        result[name] = MachineCode(int(taken[1]), int(taken[2]), int(taken[3]), accesses)
    return result


def _says(command: str, option: str, file: Path) -> str:
    return subprocess.run([command, option, file], capture_output=True, text=True, check=True).stdout


def cuobjdump() -> str:
    """Return the command that shows what is in a cubin or a library: of a wheel, or installed.

    Raises:
        BuildError: if there is none.
    """
    for root in _wheels():
        found = sorted(root.glob("*/bin/cuobjdump"))
        if found:
            return str(found[-1])
    command = shutil.which("cuobjdump")
    if command is None:
        raise BuildError("there is no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return command


def _wheels() -> list[Path]:
    """Return the folders of NVIDIA's wheels: nvidia/<library>, or nvidia/cu13 from CUDA 13 on."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(root) for root in (spec and spec.submodule_search_locations) or []]
