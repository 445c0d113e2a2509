"""Replacing activations: outputs, sharing, layouts and gains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.nfnet import GammaAct
from torch import nn

from robust_export.nn.activations import ACTIVATIONS
from robust_export.nn.replace import ChannelsLast, PerWidth, replace_activations
from robust_export.nn.sites import POINTWISE
from robust_export.nn.sparta import Sparta, sparta, sparta_modules
from robust_export.recipe.schema import Sharing
from tests.nn.networks import Net, network, with_activation

SMALL_VGG = {"mlp_ratio": 0.01}  # 40 neurons instead of 4096, for speed

RELU_NETWORKS: dict[str, dict[str, Any]] = {
    "resnet10t": {}, "resnetv2_18": {}, "resnest14d": {}, "res2net50_14w_8s": {},
    "densenet121": {}, "regnetx_002": {}, "vgg11": SMALL_VGG, "hrnet_w18_small": {},
    "ese_vovnet19b_slim": {},
}  # fmt: skip


def randomise_gates(module: nn.Module) -> None:
    """Give every gate random values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for gate in sparta_modules(module).values():
            for parameter in gate.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    ("name", "share"),
    [(name, "width") for name in RELU_NETWORKS] + [(name, "site") for name in list(RELU_NETWORKS)[:3]],
)
def test_logits_are_bit_identical(name: str, share: Sharing) -> None:
    original = network(name, **RELU_NETWORKS[name])
    converted = copy.deepcopy(original)
    sites = replace_activations(converted, share=share)
    used = sparta_modules(converted)
    widths = {width for site in sites for width in site.widths}
    assert len(used) == (len(widths) if share == "width" else sum(len(site.widths) for site in sites))
    assert not converted.training
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = original(x)
        assert torch.equal(converted(x), logits)
        randomise_gates(converted)
        assert not torch.allclose(converted(x), logits)  # the logits depend on the gates


@pytest.mark.parametrize(
    ("name", "branch"),
    [("mobilenetv3_small_050", ".se."), ("legacy_seresnet18", ".se_module."),
     ("skresnet18", ".attn."), ("resnest14d", "conv2.act1")],
)  # fmt: skip
def test_squeeze_and_excite_is_not_replaced(name: str, branch: str) -> None:
    converted = network(name)
    replace_activations(converted)
    remaining = [key for key, child in converted.named_modules() if isinstance(child, POINTWISE)]
    assert remaining
    assert all(branch in key or key == "act2" for key in remaining)  # act2 follows the global pool
    assert not any(branch in f".{key}." for key in sparta_modules(converted))


@pytest.mark.parametrize(
    ("activation", "kind"),
    [("sparta", Sparta), ("relu", nn.ReLU), ("silu", nn.SiLU), ("gelu", nn.GELU), ("softplus", nn.Softplus)],
)
def test_activation_by_name(activation: str, kind: type[nn.Module]) -> None:
    assert activation in ACTIVATIONS
    with torch.device("meta"):
        converted = network("resnet10t")
    sites = replace_activations(converted, activation)
    assert all(type(converted.get_submodule(site.name)) is kind for site in sites)


def test_sharing_by_width_and_by_site() -> None:
    shared, own = network("resnet10t"), network("resnet10t")
    for sites in (replace_activations(shared), replace_activations(own, share="site")):
        assert len(sites) == 11
    by_width: dict[int, set[int]] = {}
    for site in sites:
        gate = shared.get_submodule(site.name)
        assert isinstance(gate, Sparta)
        assert (gate.channels,) == site.widths
        by_width.setdefault(gate.channels, set()).add(id(gate))
    assert all(len(modules) == 1 for modules in by_width.values())
    assert len({id(own.get_submodule(site.name)) for site in sites}) == 11
    replica = copy.deepcopy(shared)  # as weight averaging does
    assert len(sparta_modules(replica)) == len(by_width)


@pytest.mark.parametrize("kernel_size", [1, 5])
def test_kernel_size(kernel_size: int) -> None:
    net = with_activation(nn.ReLU())
    replace_activations(net, kernel_size=kernel_size)
    assert isinstance(net.act, Sparta)
    assert net.act.kernel_size == kernel_size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_network_of_other_dtype(dtype: torch.dtype) -> None:
    net = with_activation(nn.ReLU()).to(dtype)
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    expected = net(x)
    replace_activations(net)
    assert torch.equal(net(x), expected)


def test_convnext_has_nhwc_sites() -> None:
    """ConvNeXt calls its activations on [N, H, W, C]."""
    converted = network("test_convnext")
    sites = replace_activations(converted)
    assert {site.layout for site in sites if ".mlp." in site.name} == {"NHWC"}
    randomise_gates(converted)
    for site in sites:
        act = converted.get_submodule(site.name)
        assert isinstance(act, ChannelsLast)
        gate = act.activation
        assert isinstance(gate, Sparta)
        assert (gate.channels,) == site.widths
        x = torch.randn(2, 6, 5, gate.channels)
        expected = sparta(x.permute(0, 3, 1, 2), gate.weight, gate.bias).permute(0, 2, 3, 1)
        assert torch.equal(act(x), expected)


def test_hrnet_has_sites_of_several_widths() -> None:
    with torch.device("meta"):
        converted = network("hrnet_w18_small")
    sites = [site for site in replace_activations(converted) if len(site.widths) > 1]
    assert sites
    for site in sites:
        act = converted.get_submodule(site.name)
        assert isinstance(act, PerWidth)
        assert act.keys() == {str(width) for width in site.widths}


def test_per_width_selects_by_channels() -> None:
    act = PerWidth({"2": Sparta(2), "3": Sparta(3)})
    randomise_gates(act)
    for width in (2, 3):
        x = torch.randn(1, width, 4, 4)
        assert torch.equal(act(x), act[str(width)](x))


def test_module_with_two_names() -> None:
    act = nn.ReLU()
    net = Net(lambda net, x: net.two(net.one(x)), one=act, two=act)
    replace_activations(net)
    assert isinstance(net.one, Sparta)
    assert net.one is net.two


# --- Normaliser-free networks: activations with a gain ---


@pytest.mark.parametrize("activation", ["sparta", "relu", "silu"])
def test_gain_is_kept(activation: str) -> None:
    gain = 1.7139588594436646
    net = with_activation(GammaAct("relu", gamma=gain))
    x = torch.randn(2, 3, 8, 8)
    features = net.conv(x)
    if activation == "sparta":
        original = net(x)
        replace_activations(net)
        assert torch.equal(net(x), original)
    else:
        replace_activations(net, activation)
    randomise_gates(net)
    gates = list(sparta_modules(net).values())
    functions = {"relu": F.relu, "silu": F.silu}
    without_gain = gates[0](features) if gates else functions[activation](features)
    torch.testing.assert_close(net(x), gain * without_gain)
    net(x).sum().backward()  # the in-place gain leaves the tensors for the gradient unchanged
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_nfnet_gains_are_kept() -> None:
    with torch.device("meta"):
        converted = network("dm_nfnet_f0")
        names = [name for name, child in converted.named_modules() if isinstance(child, GammaAct)]
        sites = replace_activations(converted)
    assert {site.name for site in sites} <= set(names)
    assert len(sites) > 30
    for site in sites:
        assert any(isinstance(child, Sparta) for child in converted.get_submodule(site.name).modules())
