"""Per-layer error: compare the artifact's activations with those of the reference model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robust_export.nn.sparta import Sparta, sparta_modules
from robust_export.runtimes.classifier import Artifact, Pixels
from robust_export.runtimes.onnx_model import FeatureMaps
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.verification.parity import HUGE
from robust_export.verification.results import LayerError


def per_layer_errors(reference: PyTorchClassifier, artifact: Artifact, pixels: Pixels) -> list[LayerError]:
    """Return the relative L2 error of each activation, over all images and elements.

        error = ||artifact - reference|| / ||reference||

    The list is empty if the runtime does not expose activations, or other ones than the reference model has.
    """
    activations = getattr(artifact, "activations", None)
    if activations is None:
        return []
    names, expected = reference_activations(reference.module, torch.from_numpy(pixels).to(reference.device))
    actual: list[FeatureMaps] = activations(pixels)
    if [item.shape for item in expected] != [item.shape for item in actual]:
        return []
    return [LayerError(name, _relative_l2(a, b)) for name, a, b in zip(names, expected, actual, strict=True)]


def reference_activations(network: nn.Module, pixels: Tensor) -> tuple[list[str], list[FeatureMaps]]:
    """Return names and outputs of all calls of Sparta (of ReLU if there is no Sparta) in one forward pass."""
    kind: type[nn.Module] = Sparta if sparta_modules(network) else nn.ReLU
    names: list[str] = []
    outputs: list[FeatureMaps] = []

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:  # noqa: ARG001
            names.append(name if names.count(name) == 0 else f"{name} ({len(names) + 1})")
            outputs.append(output.float().cpu().numpy())

        return hook

    hooks = [m.register_forward_hook(record(n)) for n, m in network.named_modules() if isinstance(m, kind)]
    try:
        with torch.inference_mode():
            network(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return names, outputs


def _relative_l2(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> float:
    """Return the relative L2 error, HUGE if `actual` is not finite."""
    if not np.isfinite(actual).all():
        return HUGE
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    return float(np.linalg.norm(b - a) / max(np.linalg.norm(a), np.finfo(np.float64).tiny))
