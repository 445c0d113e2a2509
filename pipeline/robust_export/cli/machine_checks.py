"""The checks of `robust-export doctor`: what is installed on this machine, and how to get what is missing."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from robust_export.errors import BuildError
from robust_export.kernels.headers.tensorrt import find_tensorrt_headers
from robust_export.kernels.libraries import ort_library, trt_library, why_no_ort_library, why_no_trt_library
from robust_export.kernels.toolchain import find_nvcc
from robust_export.utils.extras import EXTRAS

REQUIRED = ("click", "numpy", "onnx", "pillow", "pydantic", "safetensors")

TENSORRT = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx_cu13", "tensorrt_rtx"),
}
"""{import name of a package: names of the distributions that may contain it}"""

MIN_DISK = 2 << 30  # bytes


@dataclass(frozen=True)
class Check:
    """A component, whether this machine has it, and how to get it if not."""

    name: str
    status: Literal["ok", "missing", "optional"]  # "optional": missing, but only some commands need it
    found: str
    advice: str = ""


def check_machine() -> list[Check]:
    """Return all checks, those of the required packages first."""
    return [*_packages(), *_onnxruntime(), _gpu(), *_kernels(), *_tensorrt(), _disk()]


def _packages() -> Iterator[Check]:
    version = platform.python_version()
    enough = sys.version_info >= (3, 11)
    yield Check("Python", "ok" if enough else "missing", version, "" if enough else "3.11 or later")
    for package in REQUIRED:
        found = _version(package)
        advice = "" if found else f"pip install {package}"
        yield Check(package, "ok" if found else "missing", found or "not installed", advice)
    for extra, packages in EXTRAS.items():
        for package in packages.values():
            found = _version(package)
            advice = "" if found else f"pip install 'robust-export[{extra}]'"
            yield Check(package, "ok" if found else "optional", found or "not installed", advice)


def _onnxruntime() -> Iterator[Check]:
    both = _version("onnxruntime"), _version("onnxruntime-gpu")
    if all(both):
        yield Check(
            "ONNX Runtime", "missing", "both onnxruntime and onnxruntime-gpu, which overwrite each other",
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them",
        )  # fmt: skip
        return
    if not any(both):
        yield Check(
            "ONNX Runtime", "missing", "not installed", "pip install onnxruntime-gpu (or onnxruntime)"
        )
        return
    import onnxruntime

    providers = ", ".join(p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers())
    yield Check("ONNX Runtime", "ok", f"{onnxruntime.__version__}: {providers}")


def _gpu() -> Check:
    name = _gpu_name()
    advice = "" if name else "an NVIDIA GPU and its driver, for training at full size"
    return _optional("GPU", name, advice, "none that PyTorch can use")


def _kernels() -> Iterator[Check]:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    advice = "a C++ compiler (Debian: apt-get install g++), for the fused kernel"
    yield _optional("C++ compiler", compiler, "" if compiler else advice)
    library = ort_library()
    yield _optional("fused kernel", library, "" if library else why_no_ort_library())


def _tensorrt() -> Iterator[Check]:
    found = [f"{name} {version}" for name in TENSORRT if (version := _tensorrt_version(name))]
    advice = "pip install 'robust-export[tensorrt]', or [rtx] for TensorRT for RTX"
    yield _optional("TensorRT", ", ".join(found), "" if found else advice, "not installed")
    nvcc = find_nvcc()
    yield _optional("nvcc", nvcc, "" if nvcc else "NVIDIA's CUDA toolkit")
    try:
        yield _optional("TensorRT's headers", find_tensorrt_headers().origin, "")
    except BuildError as error:
        yield _optional("TensorRT's headers", None, str(error))
    library = trt_library()
    yield _optional("TensorRT plugin", library, "" if library else why_no_trt_library())


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    enough = free > MIN_DISK
    return Check(
        "free disk", "ok" if enough else "missing", f"{free / (1 << 30):.1f} GiB",
        "" if enough else "2 GiB, for checkpoints and artifacts",
    )  # fmt: skip


def _optional(name: str, found: object, advice: str, nothing: str = "none") -> Check:
    """Return the check of an optional component; `found` is false if it is missing."""
    return Check(name, "ok" if found else "optional", str(found or nothing), advice)


def _gpu_name() -> str | None:
    """Return the name and compute capability of PyTorch's GPU, None if it has none."""
    if importlib.util.find_spec("torch") is None or not _has_cuda_driver():
        return None
    import torch  # takes seconds, so only if there is a driver

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"


def _has_cuda_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _tensorrt_version(package: str) -> str | None:
    """Return the version of an installed package of TENSORRT, without importing it, which takes seconds."""
    if importlib.util.find_spec(package) is None:
        return None
    return next((version for name in TENSORRT[package] if (version := _version(name))), "(unknown version)")
