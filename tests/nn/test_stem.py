"""The stem for small images."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from robust_export.nn.models import create_model
from robust_export.nn.stem import keep_resolution

NARROW: dict[str, Any] = {"channels": (4, 8, 12, 16)}  # of a ResNet's four stages, for speed


def input_shape(model: nn.Module, name: str, pixels: Tensor) -> tuple[int, ...]:
    """Return the input shape of a submodule for these pixels."""
    shapes: list[tuple[int, ...]] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    with torch.no_grad():
        model(pixels)
    hook.remove()
    return tuple(shapes[0])


@pytest.mark.parametrize("image_size", [8, 32, 64, 65, 224])
def test_resolution_of_the_first_stage(image_size: int) -> None:
    """ResNet's own stem is a 7x7 convolution of stride 2 and a max-pool of stride 2."""
    model = create_model("r18_relu", image_size=image_size, **NARROW).eval()
    conv = model.get_submodule("backbone.conv1")
    assert isinstance(conv, nn.Conv2d)
    side = input_shape(model, "backbone.layer1", torch.rand(1, 3, image_size, image_size))[-1]
    if image_size <= 64:
        assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        assert isinstance(model.get_submodule("backbone.maxpool"), nn.Identity)
        assert side == image_size
    else:
        assert (conv.kernel_size, conv.stride, conv.padding) == ((7, 7), (2, 2), (3, 3))
        assert isinstance(model.get_submodule("backbone.maxpool"), nn.MaxPool2d)
        assert side == (image_size + 3) // 4


@pytest.mark.parametrize(
    ("name", "first_stage"),
    [
        ("resnet10t", "layer1"),
        ("seresnet18", "layer1"),
        ("resnetblur18", "layer1"),
        ("legacy_seresnet18", "layer1"),
        ("resnetv2_18", "stages.0"),
        ("densenet121", "features.denseblock1"),
        ("regnetx_002", "s1"),
        ("dla46x_c", "level0"),
        ("dpn48b", "features.conv2_1"),
        ("convnext_atto", "stages.0"),
        ("repvgg_a0", "stages.0"),
        ("mobilenetv3_small_050", "blocks.0"),
        ("nf_resnet26", "stages.0"),
        ("hgnetv2_b0", "stem.stem3"),  # its pool has stride 1
    ],
)
def test_first_stage_of_other_backbones(name: str, first_stage: str) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(name).eval()
        keep_resolution(backbone, name)
        assert input_shape(backbone, first_stage, torch.empty(1, 3, 32, 32))[-2:] == (32, 32)


def test_stem_for_large_images_is_unchanged() -> None:
    model = create_model("r18_sparta", num_classes=1000, image_size=224, **NARROW)
    original = timm.create_model("resnet18", **NARROW)
    shapes = {name: tensor.shape for name, tensor in model.backbone.state_dict().items()}
    assert {name: tensor.shape for name, tensor in original.state_dict().items()}.items() <= shapes.items()


@pytest.mark.parametrize("name", ["nf_resnet26", "test_nfnet"])
def test_normaliser_free_stem_keeps_gamma(name: str) -> None:
    """`scale` is gamma / sqrt(fan_in); gamma stays the same with the new fan_in."""
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    before = timm.create_model(name, num_classes=3).get_submodule(str(config.first_conv))
    after = create_model(f"{name}_sparta", 3, 32).get_submodule(f"backbone.{config.first_conv}")
    assert type(after) is type(before)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(after, nn.Conv2d)
    assert after.stride == (1, 1)
    gamma = [conv.scale * conv.weight[0].numel() ** 0.5 for conv in (before, after)]
    assert gamma[0] == pytest.approx(gamma[1])
