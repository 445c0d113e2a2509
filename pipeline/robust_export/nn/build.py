"""Build the network of a recipe with its initial weights, before training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from robust_export.bundle import Bundle
from robust_export.nn.initial_weights import load_initial_weights
from robust_export.nn.models import create_model
from robust_export.nn.pixel_classifier import PixelClassifier
from robust_export.nn.sparta import sparta_modules
from robust_export.nn.sparta_file import freeze_sparta, load_sparta
from robust_export.recipe.schema import Model, SpartaOptions


def build_model(spec: Model, options: SpartaOptions, num_classes: int, seed: int = 0) -> PixelClassifier:
    """Build the network of a recipe with the weights that `init`, `load` and `gate` ask for.

    Args:
        spec: the section [model].
        options: the section [sparta].
        num_classes: K of the logits [N, K].
        seed: of the permutation for `gate = "random"`.
    """
    model = create_model(
        spec.name, num_classes, spec.image_size, spec.in_chans,
        share=options.share, kernel_size=options.kernel_size, form=options.form, **spec.options,
    )  # fmt: skip
    if spec.init != "random":
        load_initial_weights(model, spec.init)
    if options.load:
        load_sparta(model, find_sparta_file(options.load))
    if options.gate == "random":
        permute_sparta(model, seed)
    if options.gate == "bias":
        zero_sparta_weights(model)
    if options.freeze:
        freeze_sparta(model)
    return model


def find_sparta_file(source: str) -> Path:
    """Return the path of a Sparta function: `source` itself if it is a .safetensors file, else the bundle's.

    Raises:
        BundleError: if the bundle is missing, altered, or has no Sparta function.
    """
    path = Path(source)
    return path if path.suffix == ".safetensors" else Bundle.open(source).file("sparta.safetensors")


def permute_sparta(module: nn.Module, seed: int) -> None:
    """Permute the values within each weight and each bias: a control with the same values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in sparta_modules(module).values():
            for parameter in (child.weight, child.bias):
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))


def zero_sparta_weights(module: nn.Module) -> None:
    """Set all gate weights to zero and freeze them: a control whose gates, 2 sigmoid(b), ignore the input."""
    for child in sparta_modules(module).values():
        with torch.no_grad():
            child.weight.zero_()
        child.weight.requires_grad_(False)
