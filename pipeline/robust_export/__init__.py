"""robust-export: adversarially robust image classifiers, from training to a verified artifact.

Names are imported when they are first used, so that `import robust_export` costs nothing and a
server that runs an artifact never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robust_export import native as native
    from robust_export import sparta as sparta
    from robust_export.activations import replace_activations as replace_activations
    from robust_export.bundle import Bundle as Bundle
    from robust_export.data import load_dataset as load_dataset
    from robust_export.export.onnx import export_onnx as export_onnx
    from robust_export.models import create_model as create_model
    from robust_export.models import load as load
    from robust_export.sparta import Sparta as Sparta
    from robust_export.sparta import freeze_sparta as freeze_sparta
    from robust_export.sparta import load_sparta as load_sparta
    from robust_export.sparta import save_sparta as save_sparta
    from robust_export.training import train as train
    from robust_export.verification import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "bundle", "Sparta": "sparta", "create_model": "models", "export_onnx": "export.onnx",
    "freeze_sparta": "sparta", "load": "models", "load_dataset": "data", "load_sparta": "sparta",
    "replace_activations": "activations", "save_sparta": "sparta", "train": "training",
    "verify": "verification",
}  # fmt: skip

__all__ = [*_HOMES, "__version__", "native", "sparta"]


def __getattr__(name: str) -> Any:
    if name in ("native", "sparta"):  # rooms; sparta is callable as the function it is named after
        return import_module(f"robust_export.{name}")
    if name in _HOMES:
        return getattr(import_module(f"robust_export.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'robust_export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
