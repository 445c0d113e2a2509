"""Replace a backbone's stem by one that keeps the resolution of small images."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

SMALL_IMAGE = 64  # pixels; images up to this size get the stem that keeps their resolution

STEM_POOLS = ("maxpool", "stem.pool", "features.pool0", "pool0", "layer0.pool0", "features.conv1_pool")


def keep_resolution(backbone: nn.Module, timm_name: str) -> None:
    """Replace, in place, the first convolution by a 3x3 one of stride 1, and remove the stem's max-pool."""
    config: Any = timm.get_pretrained_cfg(timm_name)
    for name in layer_names(config.first_conv):
        conv = backbone.get_submodule(name)
        if not isinstance(conv, nn.Conv2d) or conv.stride == (1, 1):
            continue
        if conv.kernel_size == (1, 1):
            conv.stride = (1, 1)
            continue
        # Keep the class: normaliser-free networks need its weight standardisation.
        small = type(conv)(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
        if hasattr(conv, "scale"):  # gamma / sqrt(fan_in): keep gamma
            small.scale = conv.scale * (conv.weight[0].numel() / small.weight[0].numel()) ** 0.5
        backbone.set_submodule(name, small)
    modules = dict(backbone.named_modules())
    for name in STEM_POOLS:
        pool = modules.get(name)
        if pool is not None and not (isinstance(pool, nn.MaxPool2d) and pool.stride == 1):
            backbone.set_submodule(name, nn.Identity())


def layer_names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return a timm configuration's entry (None, one layer name or several) as a tuple."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
