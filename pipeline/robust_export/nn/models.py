"""Create a classifier by its name: any timm CNN with any activation, pixels in [0, 1] to logits."""

from __future__ import annotations

import copy
from statistics import fmean
from typing import Any

import timm
import torch
from torch import nn

from robust_export.errors import UnsupportedModel, reason
from robust_export.nn.model_names import convertible_backbones, split_name
from robust_export.nn.pixel_classifier import PixelClassifier
from robust_export.nn.replace import replace_activations
from robust_export.nn.sites import NO_FEATURE_MAP
from robust_export.nn.stem import SMALL_IMAGE, keep_resolution
from robust_export.recipe.schema import Sharing, SpartaForm


def create_model(
    name: str,
    num_classes: int = 10,
    image_size: int = 32,
    in_chans: int = 3,
    *,
    share: Sharing = "width",
    kernel_size: int = 3,
    form: SpartaForm = "relu",
    **timm_options: Any,
) -> PixelClassifier:
    """Create a network with random weights and the activation that its name ends in.

    For images of up to 64 pixels the backbone gets the stem of CIFAR networks: the first convolution is
    3x3 with stride 1, and the stem's max-pool is removed. Pixels are normalised by the backbone's own mean
    and standard deviation.

    Args:
        name: `<backbone>_<activation>`, such as "r18_sparta" or "mobilenetv3_large_100_relu".
        num_classes: K of the logits [N, K].
        image_size: H = W of the pixels [N, in_chans, H, W] in [0, 1].
        share, kernel_size, form: see `replace_activations`.
        timm_options: keyword arguments of the timm model, such as `channels`.

    Raises:
        UnknownName: for an unknown name.
        UnsupportedModel: for a backbone that cannot be built or applies no activation to a feature map.
    """
    timm_name, activation = split_name(name)
    if timm_name.partition(".")[0] not in convertible_backbones():
        raise UnsupportedModel(f"{name}: {timm_name} {NO_FEATURE_MAP}")
    backbone = _create_backbone(timm_name, num_classes, image_size, in_chans, timm_options)
    try:
        replace_activations(
            backbone, activation, share=share, kernel_size=kernel_size, form=form,
            image_size=image_size, in_chans=in_chans,
        )  # fmt: skip
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{name}: {error}") from error
    _check_forward(name, backbone, image_size, in_chans)
    mean, std = _normalisation(timm_name, in_chans)
    return PixelClassifier(
        name, backbone, mean, std,
        num_classes=num_classes, image_size=image_size, in_chans=in_chans,
    )  # fmt: skip


def _create_backbone(
    timm_name: str, num_classes: int, image_size: int, in_chans: int, options: dict[str, Any]
) -> nn.Module:
    try:
        backbone: nn.Module = timm.create_model(
            timm_name, num_classes=num_classes, in_chans=in_chans, **options
        )
    except Exception as error:  # timm checks its arguments by asserts, or not at all
        raise UnsupportedModel(
            f"timm cannot build {timm_name} with {options}: {reason(error)}. Keys of [model] other than "
            "name, image_size, in_chans and init are passed to timm as keyword arguments."
        ) from error
    if image_size <= SMALL_IMAGE:
        keep_resolution(backbone, timm_name)
    return backbone


def _check_forward(name: str, backbone: nn.Module, image_size: int, in_chans: int) -> None:
    """Raise UnsupportedModel unless a forward pass on such images works (on the meta device: shapes only)."""
    try:
        with torch.no_grad():
            replica = copy.deepcopy(backbone).to("meta").eval()
            replica(torch.empty(2, in_chans, image_size, image_size, device="meta"))
    except Exception as error:  # a network can raise anything
        raise UnsupportedModel(
            f"{name} does not run on images of {image_size} x {image_size} with {in_chans} channels: "
            f"{reason(error)}. Give a larger image_size, or another backbone."
        ) from error


def _normalisation(timm_name: str, in_chans: int) -> tuple[list[float], list[float]]:
    """Return the backbone's mean and std per channel, each averaged if the images are not RGB."""
    config: Any = timm.get_pretrained_cfg(timm_name)
    mean, std = list(config.mean), list(config.std)
    if in_chans != len(mean):
        mean, std = [fmean(mean)] * in_chans, [fmean(std)] * in_chans
    return mean, std
