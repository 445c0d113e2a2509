"""Where a result comes from: versions, machine, data, time."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch", "timm", "torchvision", "onnx", "onnxruntime-gpu", "onnxruntime", "openvino", "numpy",
    "pyautoattack",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    found = {"robust-export": metadata.version("robust-export")}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine(device: torch.device) -> dict[str, Any]:
    """Return what a bit-identical repetition depends on besides versions."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "system": platform.system(), "processor": platform.machine(), "cpu": _cpu(), "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(), "python": platform.python_version(), "gpu": gpu,
    }  # fmt: skip


def _cpu() -> str:
    """Return the processor's own name where the system says it (Linux), its family elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
