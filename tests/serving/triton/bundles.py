"""A bundle with engines that nobody can run, described as `robust-export tensorrt` describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robust_export.bundle import Bundle
from tests.serving.bundles import linear_bundle

PLAN = b"a plan that only a GPU could read"
LIBRARY = "ab" * 32  # a digest


def with_engines(folder: Path, **engines: dict[str, Any]) -> Bundle:
    """Return a bundle with an ONNX file, and an engine for each keyword, whose facts differ as given."""
    bundle = Bundle.open(linear_bundle(folder))
    for number, (name, changes) in enumerate(engines.items()):
        bundle.write({f"model.{name}.engine": PLAN + bytes([number])}, "engine", **facts() | changes)
    return bundle


def facts() -> dict[str, Any]:
    """Return what a manifest says of an engine of TensorRT with the plugin."""
    return {
        "precision": "fp32", "flavor": "tensorrt", "tensorrt": "10.13.3.9", "plugin": "library",
        "plugin_library": LIBRARY, "sparta_nodes": 17, "plugin_layers": 17, "compute_capability": "8.9",
        "profile": {"min": 1, "opt": 16, "max": 64}, "inspected": True,
        "options": {"tf32": False, "fuse_add": False, "workspace": None, "version_compatible": False,
                    "hardware_compatible": None},
        "source": {"file": "model.onnx", "sha256": "cd" * 32},
    }  # fmt: skip
