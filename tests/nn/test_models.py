"""Building classifiers by name: options, normalisation, seeds, what cannot be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from robust_export.errors import RobustExportError, UnknownName, UnsupportedModel
from robust_export.nn.build import build_model
from robust_export.nn.model_names import SHORT_NAMES, model_names, split_name
from robust_export.nn.models import create_model
from robust_export.nn.replace import ACTIVATIONS
from robust_export.nn.sparta import Sparta, sparta_modules
from robust_export.nn.sparta_file import save_sparta, sparta_table
from robust_export.nn.state_dict import tensors
from robust_export.recipe.schema import Model, SpartaOptions

NARROW: dict[str, Any] = {"channels": (4, 8, 12, 16)}  # of a ResNet's four stages, to be quick
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- Names ---


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
def test_unknown_names(name: str, nearest: str) -> None:
    with pytest.raises(UnknownName) as caught:
        split_name(name)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"unknown model {name!r}; did you mean ")
    assert nearest in first
    assert "<backbone>_<activation>" in second
    assert all(activation in second for activation in ACTIVATIONS)


@pytest.mark.parametrize("name", ["", "_", "sparta", "_sparta", "quite something else", "r18 sparta"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UnknownName, match="unknown model"):
        create_model(name)


def test_model_names() -> None:
    names = model_names()
    assert {"r18_sparta", "resnet10t_relu", "hrnet_w18_small_silu", "convnext_atto_gelu"} <= set(names)
    assert len(names) == len(set(names))
    backbones = {split_name(name)[0] for name in names}  # none is unknown
    assert set(SHORT_NAMES.values()) <= backbones
    assert backbones.isdisjoint(timm.list_models(module="vision_transformer"))
    assert len(names) == len(ACTIVATIONS) * (len(backbones) + len(SHORT_NAMES))


# --- The classifier ---


def test_timm_options_and_attributes() -> None:
    model = create_model(
        "resnet10t_sparta", 7, 16, 1, channels=(8, 8, 16, 16), stem_width=8, share="site", kernel_size=5
    )
    assert (model.name, model.num_classes, model.image_size, model.in_chans) == ("resnet10t_sparta", 7, 16, 1)
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 7)
    gates = sparta_modules(model).values()
    assert len(gates) == 11
    assert {gate.kernel_size for gate in gates} == {5}
    assert {gate.channels for gate in gates} == {6, 8, 16}  # 6 within the stem


@pytest.mark.parametrize(
    ("name", "in_chans", "mean", "std"),
    [
        ("r18", 3, IMAGENET_MEAN, IMAGENET_STD),
        ("r18", 1, (0.449,), (0.226,)),
        ("r18", 4, (0.449,) * 4, (0.226,) * 4),
        ("legacy_xception", 3, (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_normalisation_is_inside(
    name: str, in_chans: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    options = NARROW if name == "r18" else {}
    model = create_model(f"{name}_sparta", image_size=32, in_chans=in_chans, **options).eval()
    pixels = torch.rand(2, in_chans, 32, 32)
    normalised = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), model.backbone(normalised))
    assert {"mean", "std"} <= tensors(model).keys()  # they travel with the weights
    assert not {"mean", "std"} & dict(model.named_parameters()).keys()


def test_one_seed_gives_relu_and_sparta_the_same_logits() -> None:
    pixels = torch.rand(2, 3, 32, 32)
    logits, later = [], []
    for activation in ("relu", "sparta"):
        torch.manual_seed(7)
        model = create_model(f"r18_{activation}", num_classes=5, **NARROW).eval()
        later.append(torch.rand(3))  # what training goes on to draw
        with torch.no_grad():
            logits.append(model(pixels))
    assert torch.equal(*logits)
    assert torch.equal(*later)


def test_build_model_follows_the_recipe(tmp_path: Path) -> None:
    source = create_model("r18_sparta", image_size=8, kernel_size=1, **NARROW)
    with torch.no_grad():
        for gate in sparta_modules(source).values():
            gate.bias.fill_(0.5)
    path = save_sparta(source, tmp_path / "s.safetensors")
    options = {"channels": [4, 8, 12, 16]}  # a list, as TOML has it
    spec = Model(name="r34_sparta", image_size=8, in_chans=1, options=options)
    model = build_model(spec, SpartaOptions(kernel_size=1, load=str(path), freeze=True), 6)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 6)
    for gate in sparta_table(model).values():
        assert gate.kernel_size == 1
        assert (gate.bias == 0.5).all()
        assert not gate.weight.requires_grad


# --- What cannot be built ---


@pytest.mark.parametrize(
    ("name", "image_size", "options", "fragments"),
    [
        ("vit_tiny_patch16_224_sparta", 224, {}, ["no pointwise activation on an [N, C, H, W] plane"]),
        ("vit_tiny_patch16_224_sparta", 32, {}, ["no pointwise activation on an [N, C, H, W] plane"]),
        ("mixer_s16_224_relu", 32, {}, ["no pointwise activation on an [N, C, H, W] plane"]),
        ("r18_sparta", 32, {"chanels": (8,)}, ["resnet18", "'chanels': (8,)", "unexpected keyword argument"]),
        ("r18_sparta", 32, {"output_stride": 5}, ["resnet18", "'output_stride': 5"]),
        ("r18_sparta", 32, {"channels": (4, 8)}, ["r18_sparta"]),
        ("r18_sparta", 32, {"channels": "wide"}, ["resnet18", "'channels': 'wide'"]),
        ("vgg11_relu", 4, {"mlp_ratio": 0.01}, ["4 x 4"]),
        ("efficientformerv2_s0_sparta", 32, {}, ["32 x 32"]),
    ],
)
def test_networks_that_cannot_be_built(
    name: str, image_size: int, options: dict[str, Any], fragments: list[str]
) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        create_model(name, image_size=image_size, **options)
    assert all(fragment in str(caught.value) for fragment in fragments)


def test_names_with_a_tag_of_timm() -> None:
    model = create_model("resnet18.a1_in1k_sparta", image_size=8, **NARROW)
    assert isinstance(model.get_submodule("backbone.act1"), Sparta)
    with pytest.raises(RobustExportError, match=r"resnet18\.nonsense"):
        create_model("resnet18.nonsense_sparta", image_size=8, **NARROW)
