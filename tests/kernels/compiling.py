"""How tests compile the source of the kernels for GPUs so that it runs on the CPU."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from robust_export import kernels
from robust_export.errors import BuildError


def cuda_include() -> str:
    """Return a folder with CUDA's headers: of an installed toolkit, or of Triton, which torch came with."""
    places = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    triton = importlib.util.find_spec("triton")
    for root in (triton and triton.submodule_search_locations) or []:
        places.append(Path(root) / "backends/nvidia/include")
    wanted = ("cuda_fp16.h", "crt/host_defines.h")
    return next((str(place) for place in places if all((place / name).is_file() for name in wanted)), "")


def kernels_on_cpu(*options: str) -> list[str]:
    """Return the command that compiles a program with cuda_on_cpu.h; skip where it cannot be had."""
    include = cuda_include()
    try:
        tools = kernels.find_tools()
    except BuildError as error:
        pytest.skip(str(error))
    if not include:
        pytest.skip("there is no cuda_fp16.h, of a CUDA toolkit or of Triton")
    return [tools.compiler, "-std=gnu++17", "-O0", "-pthread", "-isystem", include, *options]
