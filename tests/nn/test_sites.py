"""Finding sites, and networks that cannot be converted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm.layers.activations as layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_export.errors import InvalidValue, UnknownName, UnsupportedModel
from robust_export.nn.replace import replace_activations
from robust_export.nn.sites import Site, find_sites
from robust_export.nn.sparta import Sparta
from tests.nn.networks import Net, network, with_activation


def test_sites_are_in_call_order() -> None:
    sites = find_sites(network("resnet18"))
    assert sites[:3] == [Site(name, (64,), "NCHW") for name in ("act1", "layer1.0.act1", "layer1.0.act2")]
    assert sites[-1] == Site("layer4.1.act2", (512,), "NCHW")
    assert len(sites) == 17


def test_find_sites_does_not_change_the_network() -> None:
    original = network("resnet10t").train()
    state = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    random = torch.get_rng_state()
    find_sites(original)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in original.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in original.modules())


@pytest.mark.parametrize(
    "act",
    [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
     nn.Mish, nn.Hardswish, nn.Softplus, layers.Swish, layers.Mish, layers.PReLU, layers.HardSwish,
     layers.HardMish, layers.GELU, layers.GELUTanh, layers.QuickGELU],
    ids=lambda kind: f"{kind.__module__}.{kind.__name__}",
)  # fmt: skip
def test_pointwise_activation_is_replaced(act: type[nn.Module]) -> None:
    module = with_activation(act())
    assert replace_activations(module) == [Site("act", (4,), "NCHW")]
    assert isinstance(module.act, Sparta)


@pytest.mark.parametrize("other", [nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softmax2d, nn.Identity])
def test_other_activations_are_not_replaced(other: type[nn.Module]) -> None:
    with pytest.raises(UnsupportedModel, match="Net has no pointwise activation on a feature"):
        replace_activations(with_activation(other()))


@pytest.mark.parametrize(
    "shape", [(4,), (4, 1, 1), (36, 1), (1, 4), (1, 1, 4), (4, 3, 3), (3, 3, 4)], ids=str
)
def test_tensors_without_spatial_dimensions_are_no_sites(shape: tuple[int, ...]) -> None:
    def rest(net: Any, x: Tensor) -> Tensor:
        side = x.mean((2, 3)).repeat(1, 9)[:, : torch.Size(shape).numel()].view(-1, *shape)
        return net.act(x).mean((2, 3)).sum(1) + net.side(side).flatten(1).sum(1)  # type: ignore[no-any-return]

    assert find_sites(Net(rest, act=nn.ReLU(), side=nn.ReLU())) == [Site("act", (4,), "NCHW")]


def test_token_sequences_are_no_feature_maps() -> None:
    """[N, H * W, C] has only one dimension that grows with the image."""
    net = Net(lambda net, x: net.act(x.flatten(2).transpose(1, 2)), act=nn.GELU())
    with pytest.raises(UnsupportedModel, match="no pointwise activation"):
        find_sites(net)


def test_network_of_one_input_size() -> None:
    def rest(net: Any, x: Tensor) -> Tensor:
        pooled = net.pooled(x.mean((2, 3), keepdim=True))
        return net.head(net.act(x).flatten(1)) * pooled.flatten(1)  # type: ignore[no-any-return]

    net = Net(rest, act=nn.ReLU(), pooled=nn.ReLU(), head=nn.Linear(4 * 10 * 10, 4))
    assert find_sites(net, image_size=12) == [Site("act", (4,), "NCHW")]
    with pytest.raises(UnsupportedModel, match="Net does not run on images of 16 x 16 with 3 channels"):
        find_sites(net, image_size=16)


def test_grey_images() -> None:
    net = network("resnet10t", in_chans=1)
    assert len(replace_activations(net, in_chans=1)) == 11
    with pytest.raises(UnsupportedModel, match="with 3 channels"):
        find_sites(net)


# --- Networks that cannot be converted ---


@pytest.mark.parametrize(
    ("function", "name"),
    [(F.relu, "relu"), (torch.relu, "relu"), (torch.relu_, "relu_"), (Tensor.relu, "relu"),
     (lambda x: torch.relu(input=x), "relu"), (F.relu6, "relu6"), (F.leaky_relu, "leaky_relu"),
     (F.silu, "silu"), (F.gelu, "gelu"), (F.hardswish, "hardswish"), (F.mish, "mish"), (F.elu, "elu"),
     (F.softplus, "softplus"), (F.selu, "selu"), (torch.selu, "selu"), (torch.celu, "celu"),
     (F.elu_, "elu_"), (F.leaky_relu_, "leaky_relu_"), (torch.selu_, "selu_"), (torch.celu_, "celu_"),
     (F.rrelu, "rrelu"), (lambda x: F.prelu(x, x.new_ones(4)), "prelu")],
)  # fmt: skip
def test_activation_function_on_feature_map_is_refused(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    net = Net(lambda net, x: function(net.act(x)), act=nn.ReLU())
    with pytest.raises(UnsupportedModel, match=f"calls {name} as a function on feature maps"):
        replace_activations(net)
    assert isinstance(net.act, nn.ReLU)  # nothing was replaced


def test_training_mode_is_ignored() -> None:
    """Calls in training mode only (auxiliary classifiers) are not considered."""
    net = Net(lambda net, x: F.relu(net.act(x)) if net.training else net.act(x), act=nn.ReLU())
    assert find_sites(net.train()) == [Site("act", (4,), "NCHW")]
    assert net.training


def test_activation_function_elsewhere_is_allowed() -> None:
    net = Net(lambda net, x: net.act(x) * F.relu(x.mean((2, 3), keepdim=True)), act=nn.ReLU())
    assert find_sites(net) == [Site("act", (4,), "NCHW")]


def test_module_on_feature_maps_and_other_tensors() -> None:
    net = Net(lambda net, x: net.act(x).mean((2, 3)) * net.act(x.mean((2, 3))), act=nn.ReLU())
    with pytest.raises(UnsupportedModel, match=r"'act' is called both on feature maps and on other tensors"):
        replace_activations(net)
    assert isinstance(net.act, nn.ReLU)


def test_transformer_is_refused() -> None:
    with torch.device("meta"):
        transformer = network("vit_tiny_patch16_224")
    with pytest.raises(UnsupportedModel, match="VisionTransformer has no pointwise activation"):
        replace_activations(transformer, image_size=224)


def test_invalid_arguments() -> None:
    net = with_activation(nn.ReLU())
    with pytest.raises(UnknownName, match="unknown activation 'spatra'; did you mean 'sparta'"):
        replace_activations(net, "spatra")
    wrong: Any = "layer"
    with pytest.raises(InvalidValue, match="share is 'layer'; expected 'width' or 'site'"):
        replace_activations(net, share=wrong)
    with pytest.raises(InvalidValue, match="odd kernel_size of 1 or more; received 4"):
        replace_activations(net, kernel_size=4)
    assert isinstance(net.act, nn.ReLU)


@pytest.mark.parametrize("name", ["resnet10t", "test_convnext"])
def test_sparta_is_not_replaced(name: str) -> None:
    with torch.device("meta"):
        converted = network(name)
        replace_activations(converted)
    with pytest.raises(UnsupportedModel, match="no pointwise activation"):
        replace_activations(converted)


def test_network_without_parameters() -> None:
    net = nn.Sequential(nn.AvgPool2d(2), nn.ReLU())
    replace_activations(net)
    assert isinstance(net[1], Sparta)
