"""What compiles the kernels, and for which GPUs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from robust_export.errors import BuildError, InvalidValue

GPUS = (75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities to compile for where no GPU says its own: 30 s on 2 cores."""

GPU = r"\d+[af]?(?:-real|-virtual)?"
"""How CMake writes one."""

NO_NVCC = "there is no nvcc (install NVIDIA's CUDA toolkit, or name nvcc in CUDACXX)"


@dataclass(frozen=True)
class Tools:
    """What compiles the kernels."""

    cmake: str
    compiler: str
    version: str  # the compiler's own first line
    nvcc: str | None  # for the kernels on GPUs: ONNX Runtime's CUDA provider, TensorRT
    nvcc_version: str  # its own last line, nothing where there is none


def find_tools() -> Tools:
    """Return CMake and the C++ compiler.

    Raises:
        BuildError: if one of them is missing, saying how to get it.
    """
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake = shutil.which("cmake", path=beside)
    if cmake is None:
        raise BuildError("there is no CMake (pip install cmake), so the kernels cannot be built")
    asked = os.environ.get("CXX")
    names = [asked] if asked else ["c++", "g++", "clang++"]
    compiler = next((found for name in names if (found := shutil.which(name))), None)
    if compiler is None:
        what = f"CXX is {asked!r}, which is no command" if asked else "there is no C++ compiler"
        raise BuildError(f"{what} (Debian: apt-get install g++), so the kernels cannot be built")
    lines = run([compiler, "--version"]).stdout.splitlines()
    nvcc = find_nvcc()
    said = run([nvcc, "--version"]).stdout.split("\n") if nvcc else [""]
    return Tools(cmake, compiler, lines[0] if lines else "unknown", nvcc, " ".join(said[-2:]).strip())


def find_nvcc() -> str | None:
    """Return CUDACXX, or the nvcc of the PATH, CUDA_HOME or /usr/local/cuda; None where there is none."""
    if asked := os.environ.get("CUDACXX"):
        return shutil.which(asked)
    places = [os.environ.get("PATH", "")]
    places += [f"{home}/bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def architectures(nvcc: str) -> str:
    """Return the GPUs to compile for, in CMake's words: ROBUST_EXPORT_CUDA_ARCHS, this machine's, or all.

    The newest has PTX too, which GPUs that are newer still compile when they load it.

    Raises:
        InvalidValue: if ROBUST_EXPORT_CUDA_ARCHS is no list of them.
    """
    given = os.environ.get("ROBUST_EXPORT_CUDA_ARCHS")
    if given:
        words = given.replace(",", ";").replace(" ", "").strip(";")
        if not re.fullmatch(f"native|all|all-major|{GPU}(;{GPU})*", words):
            raise InvalidValue(
                f"ROBUST_EXPORT_CUDA_ARCHS is {given!r}; expected compute capabilities without a point, "
                "such as 80;90 or 75-real;120, or all-major"
            )
        return words
    listed = run([nvcc, "--list-gpu-arch"]).stdout
    known = {int(number) for number in re.findall(r"compute_(\d+)\b", listed)} or set(GPUS)
    here = _gpus_here()
    chosen = sorted(here if here and here <= known else known & set(GPUS)) or [max(known)]
    return ";".join([*(f"{number}-real" for number in chosen[:-1]), str(chosen[-1])])


def _gpus_here() -> set[int]:
    """Return the compute capabilities of this machine's GPUs, as its driver says them."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return set()
    said = run([command, "--query-gpu=compute_cap", "--format=csv,noheader"])
    found = re.findall(r"^(\d+)\.(\d)$", said.stdout, re.MULTILINE)
    return {int(major + minor) for major, minor in found} if said.returncode == 0 else set()


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it says.

    Raises:
        BuildError: if it cannot be run.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"could not run {command[0]}: {error.strerror or error}") from error
