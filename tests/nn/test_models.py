"""Creating classifiers by name: options, normalisation, seeds, unsupported networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robust_export.errors import RobustExportError, UnsupportedModel
from robust_export.nn.models import create_model
from robust_export.nn.sparta import Sparta, sparta_modules
from robust_export.nn.state_dict import tensors

NARROW: dict[str, Any] = {"channels": (4, 8, 12, 16)}  # of a ResNet's four stages, for speed
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_timm_options_and_attributes() -> None:
    model = create_model(
        "resnet10t_sparta", 7, 16, 1, channels=(8, 8, 16, 16), stem_width=8, share="site", kernel_size=5
    )
    assert (model.name, model.num_classes, model.image_size, model.in_chans) == ("resnet10t_sparta", 7, 16, 1)
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 7)
    gates = sparta_modules(model).values()
    assert len(gates) == 11
    assert {gate.kernel_size for gate in gates} == {5}
    assert {gate.channels for gate in gates} == {6, 8, 16}  # 6 in the stem


@pytest.mark.parametrize(
    ("name", "in_chans", "mean", "std"),
    [
        ("r18", 3, IMAGENET_MEAN, IMAGENET_STD),
        ("r18", 1, (0.449,), (0.226,)),
        ("r18", 4, (0.449,) * 4, (0.226,) * 4),
        ("legacy_xception", 3, (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_normalisation_is_part_of_the_model(
    name: str, in_chans: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    options = NARROW if name == "r18" else {}
    model = create_model(f"{name}_sparta", image_size=32, in_chans=in_chans, **options).eval()
    pixels = torch.rand(2, in_chans, 32, 32)
    normalised = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), model.backbone(normalised))
    assert {"mean", "std"} <= tensors(model).keys()  # saved with the weights
    assert not {"mean", "std"} & dict(model.named_parameters()).keys()


def test_relu_and_sparta_have_equal_initial_logits() -> None:
    pixels = torch.rand(2, 3, 32, 32)
    logits, next_numbers = [], []
    for activation in ("relu", "sparta"):
        torch.manual_seed(7)
        model = create_model(f"r18_{activation}", num_classes=5, **NARROW).eval()
        next_numbers.append(torch.rand(3))  # training continues with the same random numbers
        with torch.no_grad():
            logits.append(model(pixels))
    assert torch.equal(*logits)
    assert torch.equal(*next_numbers)


# --- Unsupported networks ---


@pytest.mark.parametrize(
    ("name", "image_size", "options", "fragments"),
    [
        ("vit_tiny_patch16_224_sparta", 224, {}, ["no pointwise activation on a feature map [N, C, H, W]"]),
        ("vit_tiny_patch16_224_sparta", 32, {}, ["no pointwise activation on a feature map [N, C, H, W]"]),
        ("mixer_s16_224_relu", 32, {}, ["no pointwise activation on a feature map [N, C, H, W]"]),
        ("r18_sparta", 32, {"chanels": (8,)}, ["resnet18", "'chanels': (8,)", "unexpected keyword argument"]),
        ("r18_sparta", 32, {"output_stride": 5}, ["resnet18", "'output_stride': 5"]),
        ("r18_sparta", 32, {"channels": (4, 8)}, ["r18_sparta"]),
        ("r18_sparta", 32, {"channels": "wide"}, ["resnet18", "'channels': 'wide'"]),
        ("vgg11_relu", 4, {"mlp_ratio": 0.01}, ["4 x 4"]),
        ("efficientformerv2_s0_sparta", 32, {}, ["32 x 32"]),
    ],
)
def test_unsupported_network(
    name: str, image_size: int, options: dict[str, Any], fragments: list[str]
) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        create_model(name, image_size=image_size, **options)
    assert all(fragment in str(caught.value) for fragment in fragments)


def test_name_with_timm_tag() -> None:
    model = create_model("resnet18.a1_in1k_sparta", image_size=8, **NARROW)
    assert isinstance(model.get_submodule("backbone.act1"), Sparta)
    with pytest.raises(RobustExportError, match=r"resnet18\.nonsense"):
        create_model("resnet18.nonsense_sparta", image_size=8, **NARROW)
