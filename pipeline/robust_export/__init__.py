"""Adversarially robust image classifiers, from training to a verified artifact.

Names are imported on first use: `import robust_export` is fast, and a server never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robust_export import kernels as native
    from robust_export.bundle import Bundle as Bundle
    from robust_export.data.datasets import load_dataset as load_dataset
    from robust_export.export.exporter import export_onnx as export_onnx
    from robust_export.nn.load import load as load
    from robust_export.nn.models import create_model as create_model
    from robust_export.nn.replace import replace_activations as replace_activations
    from robust_export.nn.sparta import Sparta as Sparta
    from robust_export.nn.sparta import sparta as sparta
    from robust_export.nn.sparta_file import freeze_sparta as freeze_sparta
    from robust_export.nn.sparta_file import load_sparta as load_sparta
    from robust_export.nn.sparta_file import save_sparta as save_sparta
    from robust_export.training.run import train as train
    from robust_export.verification.verify import verify as verify

from robust_export.utils.version import __version__

_MODULES = {
    "Bundle": "bundle", "Sparta": "nn.sparta", "create_model": "nn.models", "export_onnx": "export.exporter",
    "freeze_sparta": "nn.sparta_file", "load": "nn.load", "load_dataset": "data.datasets",
    "load_sparta": "nn.sparta_file", "replace_activations": "nn.replace", "save_sparta": "nn.sparta_file",
    "sparta": "nn.sparta", "train": "training.run", "verify": "verification.verify",
}  # fmt: skip

__all__ = [*_MODULES, "__version__", "native"]


def __getattr__(name: str) -> Any:
    if name == "native":
        return import_module("robust_export.kernels")
    if name in _MODULES:
        return getattr(import_module(f"robust_export.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'robust_export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
