"""Initialise a network from timm's pretrained weights or from a file."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from robust_export.errors import UnsupportedModel, reason
from robust_export.nn.activations import LEARNABLE
from robust_export.nn.model_names import split_name
from robust_export.nn.pixel_classifier import PixelClassifier
from robust_export.nn.state_dict import tensors
from robust_export.nn.stem import layer_names

log = logging.getLogger(__name__)


def load_initial_weights(model: PixelClassifier, init: str) -> list[str]:
    """Copy timm's pretrained weights (`init` "pretrained") or those of a .safetensors file into `model`.

    A file may be a bundle's weights.safetensors or a timm checkpoint of the same backbone. The following
    keep their initial values, the first two with a warning: a stem of another shape (small images), a
    classifier for another number of classes, and learnable activations that the weights lack.

    Returns:
        The names of the tensors that kept their initial values.

    Raises:
        UnsupportedModel: if the weights cannot be read or do not fit the backbone.
    """
    timm_name, _ = split_name(model.name)
    saved = _pretrained(timm_name, model.in_chans) if init == "pretrained" else _read_weights(init)
    saved = {name.removeprefix("backbone."): tensor for name, tensor in saved.items()}
    own = {name.removeprefix("backbone."): tensor for name, tensor in model.state_dict().items()}
    fits = {name for name in own if name in saved and own[name].shape == saved[name].shape}
    remaining = [name for name in tensors(model.backbone) if name not in fits]
    learnable = _learnable_names(model.backbone)
    if wrong := _misfits(remaining, timm_name, saved, learnable):
        raise UnsupportedModel(
            f"the weights in {init} do not fit {model.name}: {len(wrong)} tensors are missing or of "
            f"another shape, the first is {wrong[0]}. Give weights of the same backbone."
        )
    with torch.no_grad():
        for name in fits:
            own[name].copy_(saved[name])
    if random := [name for name in remaining if name not in learnable]:
        log.warning("%s does not fit these tensors, which start at random: %s", init, ", ".join(random))
    return remaining


def _misfits(
    remaining: list[str], timm_name: str, saved: Mapping[str, Tensor], learnable: Collection[str]
) -> list[str]:
    """Return those names in `remaining` that must not keep their initial values."""
    config: Any = timm.get_pretrained_cfg(timm_name)
    stem = tuple(f"{name}." for name in layer_names(config.first_conv))
    classifier = tuple(f"{name}." for name in layer_names(config.classifier))
    return [
        name
        for name in remaining
        if not name.startswith(classifier)  # other classes, or weights without a classifier
        and not (name.startswith(stem) and name in saved)  # another shape is fine, a missing stem is not
        and not (name in learnable and name not in saved)
    ]


def _learnable_names(module: nn.Module) -> set[str]:
    """Return the names of the parameters of learnable activations."""
    return {
        f"{name}.{part}"
        for name, child in module.named_modules(remove_duplicate=False)
        if isinstance(child, LEARNABLE)
        for part, _ in child.named_parameters()
    }


def _pretrained(timm_name: str, in_chans: int) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = timm.create_model(
            timm_name, pretrained=True, in_chans=in_chans
        ).state_dict()
    except Exception as error:  # timm and the hub's client raise many types
        raise UnsupportedModel(
            f"cannot download timm's pretrained weights of {timm_name}: {reason(error)}\n"
            "Connect to the model hub once, or give a .safetensors file with --init FILE."
        ) from error
    return state


def _read_weights(path: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UnsupportedModel(
            f"initial weights {path!r} cannot be read as a safetensors file: {error}\n"
            'Give "random", "pretrained" or a .safetensors file.'
        ) from error
