"""The tools that compile the kernels, and the GPU architectures to compile for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from robust_export.errors import BuildError, InvalidValue

DEFAULT_ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities to compile for if no local GPU is found. They take 30 s on 2 cores."""

ARCHITECTURE = r"\d+[af]?(?:-real|-virtual)?"
"""Pattern of one architecture as CMake writes it."""

NO_NVCC = "there is no nvcc (install NVIDIA's CUDA toolkit, or name nvcc in CUDACXX)"


@dataclass(frozen=True)
class Tools:
    """CMake and the compilers."""

    cmake: str
    compiler: str
    version: str  # first line of `compiler --version`
    nvcc: str | None  # for the CUDA kernels: ONNX Runtime's CUDA provider, TensorRT
    nvcc_version: str  # last line of `nvcc --version`, "" without nvcc


def find_tools() -> Tools:
    """Return CMake, the C++ compiler and, if there is one, nvcc.

    Raises:
        BuildError: if CMake or the C++ compiler is missing; the message says how to install it.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        raise BuildError("there is no CMake (pip install cmake), so the kernels cannot be built")
    requested = os.environ.get("CXX")
    names = [requested] if requested else ["c++", "g++", "clang++"]
    compiler = next((command for name in names if (command := shutil.which(name))), None)
    if compiler is None:
        problem = f"CXX is {requested!r}, which is not a command" if requested else "there is no C++ compiler"
        raise BuildError(f"{problem} (Debian: apt-get install g++), so the kernels cannot be built")
    lines = run([compiler, "--version"]).stdout.splitlines()
    nvcc = find_nvcc()
    nvcc_lines = run([nvcc, "--version"]).stdout.split("\n") if nvcc else [""]
    nvcc_version = " ".join(nvcc_lines[-2:]).strip()
    return Tools(cmake, compiler, lines[0] if lines else "unknown", nvcc, nvcc_version)


def find_nvcc() -> str | None:
    """Return CUDACXX, or nvcc from the PATH, CUDA_HOME or /usr/local/cuda; None if there is none."""
    if requested := os.environ.get("CUDACXX"):
        return shutil.which(requested)
    folders = [os.environ.get("PATH", "")]
    folders += [f"{home}/bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def architectures(nvcc: str) -> str:
    """Return the value of CMAKE_CUDA_ARCHITECTURES.

    It is ROBUST_EXPORT_CUDA_ARCHS, or the architectures of this machine's GPUs, or DEFAULT_ARCHITECTURES. For
    the newest one PTX is included, which newer GPUs compile when they load it.

    Raises:
        InvalidValue: if ROBUST_EXPORT_CUDA_ARCHS is not a list of architectures.
    """
    requested = os.environ.get("ROBUST_EXPORT_CUDA_ARCHS")
    if requested:
        value = requested.replace(",", ";").replace(" ", "").strip(";")
        if not re.fullmatch(f"native|all|all-major|{ARCHITECTURE}(;{ARCHITECTURE})*", value):
            raise InvalidValue(
                f"ROBUST_EXPORT_CUDA_ARCHS is {requested!r}; expected compute capabilities without a point, "
                "such as 80;90 or 75-real;120, or all-major"
            )
        return value
    listed = run([nvcc, "--list-gpu-arch"]).stdout
    defaults = set(DEFAULT_ARCHITECTURES)
    supported = {int(number) for number in re.findall(r"compute_(\d+)\b", listed)} or defaults
    local = _local_architectures()
    chosen = sorted(local if local and local <= supported else supported & defaults) or [max(supported)]
    return ";".join([*(f"{number}-real" for number in chosen[:-1]), str(chosen[-1])])


def _local_architectures() -> set[int]:
    """Return the compute capabilities of this machine's GPUs, by nvidia-smi."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return set()
    result = run([command, "--query-gpu=compute_cap", "--format=csv,noheader"])
    versions = re.findall(r"^(\d+)\.(\d)$", result.stdout, re.MULTILINE)
    return {int(major + minor) for major, minor in versions} if result.returncode == 0 else set()


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output.

    Raises:
        BuildError: if it cannot be started.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"could not run {command[0]}: {error.strerror or error}") from error
