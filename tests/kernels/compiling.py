"""Compile the CUDA kernels for the CPU, and the C++ test programs with CMake."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from robust_export.errors import BuildError
from robust_export.kernels.nvrtc import ACCESS_BYTES, TYPES, Kernel
from robust_export.kernels.paths import source_folder
from robust_export.kernels.toolchain import Tools, find_tools
from tests.kernels.build_cache import build_lock, build_once

CUDA_HEADERS = ("cuda_fp16.h", "crt/host_defines.h", "nv/target")


def all_kernels() -> list[Kernel]:
    """Return every kernel that plugins/core/cuda_launch.cu can launch."""
    kernels = []
    for name, (_, size) in TYPES.items():
        for k in (1, 3, 5, 7):
            vectors = {ACCESS_BYTES // size, 4 // size, 1}
            if size == 2 and k <= 3:
                vectors.add(0)
            kernels += [Kernel(name, k, vector, add) for vector in sorted(vectors) for add in (False, True)]
    return kernels


def tools_or_skip() -> Tools:
    """Return CMake and the compilers; skip the test without them."""
    try:
        return find_tools()
    except BuildError as error:
        pytest.skip(str(error))


def cuda_include() -> str:
    """Return a folder with CUDA's headers, of an installed toolkit or of Triton; "" if there is none."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    triton = importlib.util.find_spec("triton")
    for root in (triton and triton.submodule_search_locations) or []:
        folders.append(Path(root) / "backends/nvidia/include")
    complete = (folder for folder in folders if all((folder / name).is_file() for name in CUDA_HEADERS))
    return str(next(complete, ""))


def kernels_on_cpu(*options: str) -> list[str]:
    """Return the g++ command for a program with cuda_on_cpu.h; skip the test without CUDA's headers."""
    include, tools = cuda_include(), tools_or_skip()
    if not include:
        pytest.skip("there is no cuda_fp16.h, of a CUDA toolkit or of Triton")
    return [tools.compiler, "-std=gnu++17", "-O0", "-pthread", "-isystem", include, *options]


def run_command(command: list[str]) -> str:
    """Run a command, fail the test if it fails, and return its standard output."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return result.stdout


def cmake_build(
    name: str, options: dict[str, str], *targets: str, files: Mapping[str, Path] = MappingProxyType({})
) -> Path:
    """Return a CMake build tree of plugins/, from the cache.

    Args:
        name: a prefix for the tree's name.
        options: CMake variables.
        targets: the targets to build.
        files: files to copy into the tree, by their path in it.
    """
    tools, source = tools_or_skip(), source_folder()
    options = {
        "SPARTA_TESTS": "ON",
        "CMAKE_CXX_COMPILER": tools.compiler,
        "CMAKE_CXX_FLAGS": "-Werror",
        **options,
    }
    definitions = [f"-D{key}={value}" for key, value in options.items()]
    headers = [Path(value) for key, value in options.items() if key == "SPARTA_TRT_INCLUDE"]
    versions = [tools.version, tools.nvcc_version, run_command([tools.cmake, "--version"])]

    def build(folder: Path) -> None:
        run_command([tools.cmake, "-S", str(source), "-B", str(folder), *definitions])
        parallel = ["--parallel", str(os.cpu_count())]
        run_command([tools.cmake, "--build", str(folder), *parallel, "--target", *targets])
        for path, file in files.items():
            shutil.copy(file, folder / path)

    inputs: list[str | Path] = [*versions, *definitions, *targets, *files, source, *headers, *files.values()]
    return build_once(name, inputs, build)


def ctest(tree: Path, subfolder: str = ".", *options: str) -> None:
    """Run the tests that a CMake build tree registers in a subfolder; fail if one fails."""
    command = [str(Path(tools_or_skip().cmake).with_name("ctest")), "--test-dir", str(tree / subfolder)]
    with build_lock(tree):  # tests write into the tree
        output = run_command([*command, "--output-on-failure", *options])
    assert "100% tests passed" in output
