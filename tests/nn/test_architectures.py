"""Sparta in networks of many timm families."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from robust_export.nn.models import create_model
from robust_export.nn.sites import POINTWISE
from robust_export.nn.sparta import Sparta

ARCHITECTURES = {  # the fastest network of each family, by timm module
    "byobnet": ["test_byobnet"],
    "convnext": ["convnext_atto"],
    "cspnet": ["cs3darknet_s"],
    "dla": ["dla46x_c"],
    "dpn": ["dpn48b"],
    "edgenext": ["edgenext_xx_small"],
    "efficientnet": ["tinynet_e"],
    "fasternet": ["fasternet_t0"],
    "ghostnet": ["ghostnet_050"],
    "hgnet": ["hgnetv2_b0"],
    "hrnet": ["hrnet_w18_small"],
    "mambaout": ["mambaout_femto"],
    "metaformer": ["poolformer_s12"],
    "mobilenetv3": ["mobilenetv3_small_050"],
    "nfnet": ["nf_resnet26", "test_nfnet"],
    "regnet": ["regnety_002"],
    "resnest": ["resnest14d"],
    "resnet": ["resnet10t", "resnetblur18"],
    "resnetv2": ["resnetv2_18"],
    "rexnet": ["rexnetr_100"],
    "senet": ["legacy_seresnet18"],
    "sknet": ["skresnet18"],
    "starnet": ["starnet_s1"],
    "vgg": ["vgg11"],
    "vovnet": ["ese_vovnet19b_slim"],
    "xception_aligned": ["xception41"],
}
OPTIONS: dict[str, dict[str, Any]] = {"vgg11": {"mlp_ratio": 0.01}}  # 40 neurons instead of 4096


def is_feature_map(x: Tensor) -> bool:
    """Return whether x is [N, C, H, W] or [N, H, W, C] with more than one pixel."""
    return x.ndim == 4 and (min(x.shape[2:]) > 1 or min(x.shape[1:3]) > 1)


def test_table_covers_many_families() -> None:
    assert len(ARCHITECTURES) >= 14
    assert sum(map(len, ARCHITECTURES.values())) >= 28
    for module, names in ARCHITECTURES.items():
        assert set(names) <= set(timm.list_models(module=module))


@pytest.mark.parametrize("name", [name for names in ARCHITECTURES.values() for name in names])
def test_architecture(name: str) -> None:
    torch.manual_seed(0)
    size = 32
    model = create_model(f"{name}_sparta", num_classes=5, image_size=size, **OPTIONS.get(name, {})).eval()
    unreplaced: list[str] = []
    calls: dict[str, int] = {}

    def record(key: str) -> None:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if isinstance(module, Sparta):
                calls[key] = calls.get(key, 0) + 1
            elif is_feature_map(args[0]):
                unreplaced.append(f"{key} {tuple(args[0].shape)}")

        model.get_submodule(key).register_forward_pre_hook(hook)

    for key, module in model.named_modules():
        if isinstance(module, (Sparta, *POINTWISE)):
            record(key)
    with torch.no_grad():
        logits = model(torch.rand(2, 3, size, size))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    assert calls, "no Sparta was called"
    assert calls.keys() == {key for key, child in model.named_modules() if isinstance(child, Sparta)}
    assert unreplaced == []
