"""A bundle with fake engines, described in the manifest as `robust-export tensorrt` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robust_export.bundle import Bundle
from tests.serving.bundles import linear_bundle

ENGINE = b"not a real engine"
LIBRARY_SHA = "ab" * 32


def with_engines(folder: Path, **engines: dict[str, Any]) -> Bundle:
    """Return a bundle with an ONNX file and an engine per keyword, with changes to its manifest entry."""
    bundle = Bundle.open(linear_bundle(folder))
    for number, (name, changes) in enumerate(engines.items()):
        bundle.write({f"model.{name}.engine": ENGINE + bytes([number])}, "engine", **engine_facts() | changes)
    return bundle


def engine_facts() -> dict[str, Any]:
    """Return the manifest entry of a TensorRT engine that needs the plugin."""
    return {
        "precision": "fp32", "flavor": "tensorrt", "tensorrt": "10.13.3.9", "plugin": "library",
        "plugin_library": LIBRARY_SHA,
        "sparta_nodes": 17, "plugin_layers": 17, "compute_capability": "8.9",
        "profile": {"min": 1, "opt": 16, "max": 64}, "inspected": True,
        "options": {"tf32": False, "fuse_add": False, "workspace": None, "version_compatible": False,
                    "hardware_compatible": None},
        "source": {"file": "model.onnx", "sha256": "cd" * 32},
    }  # fmt: skip
