"""What timm knows of a network's ends, and the stem that small images need."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

SMALL_IMAGE = 64  # pixels; up to this size the first convolution keeps the resolution

STEM_POOLS = ("maxpool", "stem.pool", "features.pool0", "pool0", "layer0.pool0", "features.conv1_pool")


def keep_resolution(backbone: nn.Module, timm_name: str) -> None:
    """Give the backbone the stem of CIFAR networks, whose first stage sees every pixel."""
    for name in names(timm_config(timm_name).first_conv):
        conv = backbone.get_submodule(name)
        if not isinstance(conv, nn.Conv2d) or conv.stride == (1, 1):
            continue
        if conv.kernel_size == (1, 1):
            conv.stride = (1, 1)
            continue
        # Of the same class: normaliser-free networks rely on its weight standardisation.
        small = type(conv)(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
        if hasattr(conv, "scale"):  # gamma / sqrt(fan in), and the fan is another
            small.scale = conv.scale * (conv.weight[0].numel() / small.weight[0].numel()) ** 0.5
        backbone.set_submodule(name, small)
    modules = dict(backbone.named_modules())
    for name in STEM_POOLS:
        pool = modules.get(name)
        if pool is not None and not (isinstance(pool, nn.MaxPool2d) and pool.stride == 1):
            backbone.set_submodule(name, nn.Identity())


def timm_config(timm_name: str) -> Any:
    """Return what timm knows of a network: its normalisation, the names of its first and last layer."""
    return timm.get_pretrained_cfg(timm_name)


def names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
