"""Model names: parsing, suggestions and the list of all names."""

from __future__ import annotations

import pytest
import timm

from robust_export.errors import UnknownName
from robust_export.nn.activations import ACTIVATIONS
from robust_export.nn.model_names import SHORT_NAMES, model_names, split_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("r18_sparta", ("resnet18", "sparta")),
        ("r34_relu", ("resnet34", "relu")),
        ("r50_silu", ("resnet50", "silu")),
        ("resnet10t_gelu", ("resnet10t", "gelu")),
        ("mobilenetv3_large_100_sparta", ("mobilenetv3_large_100", "sparta")),
        ("wide_resnet50_2_relu", ("wide_resnet50_2", "relu")),
        ("resnet18.a1_in1k_softplus", ("resnet18.a1_in1k", "softplus")),
    ],
)
def test_split_name(name: str, expected: tuple[str, str]) -> None:
    assert split_name(name) == expected


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("r17_sparta", "'r18_sparta'"),
        ("r18_spatra", "'r18_sparta'"),
        ("resnet19_relu", "'resnet18_relu'"),
        ("mobilenetv3_large_10_silu", "'mobilenetv3_large_100_silu'"),
        ("resnet18", "'resnet18_relu'"),
        ("resnet18_", "'resnet18_relu'"),
        ("resnet18_tanh", "'resnet18_sparta'"),
    ],
)
def test_unknown_name_suggests_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownName) as caught:
        split_name(name)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"unknown model {name!r}; did you mean ")
    assert nearest in first
    assert "<backbone>_<activation>" in second
    assert all(activation in second for activation in ACTIVATIONS)


@pytest.mark.parametrize("name", ["", "_", "sparta", "_sparta", "quite something else", "r18 sparta"])
def test_invalid_names(name: str) -> None:
    with pytest.raises(UnknownName, match="unknown model"):
        split_name(name)


def test_model_names() -> None:
    names = model_names()
    assert {"r18_sparta", "resnet10t_relu", "hrnet_w18_small_silu", "convnext_atto_gelu"} <= set(names)
    assert len(names) == len(set(names))
    backbones = {split_name(name)[0] for name in names}  # none is unknown
    assert set(SHORT_NAMES.values()) <= backbones
    assert backbones.isdisjoint(timm.list_models(module="vision_transformer"))
    assert len(names) == len(ACTIVATIONS) * (len(backbones) + len(SHORT_NAMES))
