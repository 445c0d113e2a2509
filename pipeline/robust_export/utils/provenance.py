"""Facts recorded with a result: package versions, machine, time."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from robust_export.utils.version import __version__

PACKAGES = (
    "torch", "timm", "torchvision", "onnx", "onnxruntime-gpu", "onnxruntime", "openvino", "numpy",
    "pyautoattack",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of robust-export and of the installed packages that a result depends on."""
    installed = {"robust-export": __version__}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def now() -> str:
    """Return the current time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine(device: torch.device) -> dict[str, Any]:
    """Return the hardware, system and thread count: what bit-identical results depend on besides versions."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "system": platform.system(), "processor": platform.machine(), "cpu": _cpu(), "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(), "python": platform.python_version(), "gpu": gpu,
    }  # fmt: skip


def _cpu() -> str:
    """Return the processor's model name from /proc/cpuinfo (Linux), its family on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
