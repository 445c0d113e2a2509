"""What this machine can do, and what is missing for the rest."""

from __future__ import annotations

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
from robust_export.kernels.libraries import ort_library, trt_library, why_no_library, why_no_trt_library
from robust_export.kernels.toolchain import find_nvcc
from robust_export.utils.extras import EXTRAS

REQUIRED = ("click", "numpy", "onnx", "pillow", "pydantic", "safetensors")

TENSORRT = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx_cu13", "tensorrt_rtx"),
}
"""The packages to import, and the distributions that they come in."""


@dataclass(frozen=True)
class Check:
    """One thing that the machine has, or lacks."""

    name: str
    status: Literal["ok", "missing", "optional"]  # optional: missing, and only some commands need it
    found: str
    advice: str = ""


def examine() -> list[Check]:
    """Return every check, the required ones first."""
    return [*_packages(), *_runtime(), *_gpu(), *_building(), *_tensorrt(), _disk()]


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


def _runtime() -> Iterator[Check]:
    both = _version("onnxruntime"), _version("onnxruntime-gpu")
    if all(both):
        yield Check(
            "ONNX Runtime", "missing", "onnxruntime and onnxruntime-gpu, which overwrite each other",
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


def _gpu() -> Iterator[Check]:
    name = _gpu_name()
    yield Check(
        "GPU", "ok" if name else "optional", name or "none that PyTorch sees",
        "" if name else "an NVIDIA GPU and its driver, for training at full size",
    )  # fmt: skip


def _building() -> Iterator[Check]:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    advice = "" if compiler else "a C++ compiler (Debian: apt-get install g++), for the fused kernel"
    yield Check("C++ compiler", "ok" if compiler else "optional", compiler or "none", advice)
    library = ort_library()
    yield Check(
        "fused kernel", "ok" if library else "optional", str(library) if library else "none",
        "" if library else why_no_library(),
    )  # fmt: skip


def _tensorrt() -> Iterator[Check]:
    found = [f"{name} {version}" for name in TENSORRT if (version := _importable(name))]
    yield Check(
        "TensorRT", "ok" if found else "optional", ", ".join(found) or "not installed",
        "" if found else "pip install 'robust-export[tensorrt]', or [rtx] for TensorRT for RTX",
    )  # fmt: skip
    nvcc = find_nvcc()
    yield Check("nvcc", "ok" if nvcc else "optional", nvcc or "none", "" if nvcc else "NVIDIA's CUDA toolkit")
    try:
        headers, missing = find_tensorrt_headers().origin, ""
    except BuildError as error:
        headers, missing = "none", str(error)
    yield Check("TensorRT's headers", "optional" if missing else "ok", headers, missing)
    library = trt_library()
    yield Check(
        "TensorRT plugin", "ok" if library else "optional", str(library) if library else "none",
        "" if library else why_no_trt_library(),
    )  # fmt: skip


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    enough = free > 2 << 30
    return Check(
        "free disk", "ok" if enough else "missing", f"{free / (1 << 30):.1f} GiB",
        "" if enough else "2 GiB, for checkpoints and artifacts",
    )  # fmt: skip


def _gpu_name() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _importable(package: str) -> str | None:
    """Return the version of one of TENSORRT that is installed; it is not imported, which takes long."""
    if importlib.util.find_spec(package) is None:
        return None
    return next((version for name in TENSORRT[package] if (version := _version(name))), "of unknown version")
