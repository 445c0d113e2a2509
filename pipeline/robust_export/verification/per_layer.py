"""Where in the network an artifact starts to differ: its activations' planes beside the source's."""

from __future__ import annotations

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


def drift(source: PyTorchClassifier, artifact: Artifact, pixels: Pixels) -> list[LayerError]:
    """Return, activation by activation, how far the artifact's planes are from the source's.

        drift = ||artifact - source|| / ||source||, L2 over all images and elements

    Empty where the runtime does not show its inside, or shows another number of activations.
    """
    show = getattr(artifact, "activations", None)
    if show is None:
        return []
    names, ours = source_activations(source.module, torch.from_numpy(pixels).to(source.device))
    theirs: list[FeatureMaps] = show(pixels)
    if [plane.shape for plane in ours] != [plane.shape for plane in theirs]:
        return []
    return [LayerError(name, _distance(a, b)) for name, a, b in zip(names, ours, theirs, strict=True)]


def source_activations(network: nn.Module, pixels: Tensor) -> tuple[list[str], list[FeatureMaps]]:
    """Return name and output of every call of Sparta (of ReLU, in a network without) in one forward pass."""
    kind: type[nn.Module] = Sparta if sparta_modules(network) else nn.ReLU
    names: list[str] = []
    planes: list[FeatureMaps] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:  # noqa: ARG001
            names.append(name if names.count(name) == 0 else f"{name} ({len(names) + 1})")
            planes.append(output.float().cpu().numpy())

        return hook

    hooks = [m.register_forward_hook(note(n)) for n, m in network.named_modules() if isinstance(m, kind)]
    try:
        with torch.inference_mode():
            network(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return names, planes


def _distance(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    """Return the relative L2 distance; HUGE, which stands for infinity, where `theirs` is not finite."""
    if not np.isfinite(theirs).all():
        return HUGE
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.linalg.norm(b - a) / max(np.linalg.norm(a), np.finfo(np.float64).tiny))
