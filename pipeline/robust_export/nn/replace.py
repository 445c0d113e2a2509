"""Replace the pointwise activations of a CNN that are applied to feature maps."""

from __future__ import annotations

from functools import partial
from typing import get_args

import torch
from timm.models.nfnet import GammaAct
from torch import Tensor, nn

from robust_export.errors import InvalidValue, unknown
from robust_export.nn.activations import ACTIVATIONS
from robust_export.nn.sites import Site, find_sites
from robust_export.nn.sparta import Sparta
from robust_export.recipe.schema import Sharing, SpartaForm


def replace_activations(
    module: nn.Module,
    activation: str = "sparta",
    *,
    share: Sharing = "width",
    kernel_size: int = 3,
    form: SpartaForm = "relu",
    image_size: int = 128,
    in_chans: int = 3,
) -> list[Site]:
    """Replace, in place, every pointwise activation on a feature map; return the sites.

    Args:
        module: a CNN that takes [N, in_chans, H, W]. Replacing its ReLUs by Sparta leaves its outputs
            bit-identical.
        activation: a key of `ACTIVATIONS`.
        share: "width" gives all sites of a width the same module, "site" gives each site its own.
        kernel_size: side of the gate's kernel, odd.
        form: of Sparta, see its class.
        image_size: H = W, for a network that takes one size only.
        in_chans: number of input channels.

    Raises:
        UnknownName: for an unknown activation.
        InvalidValue: for another `share`.
        UnsupportedModel: if no activation is applied to a feature map, or one is called as a function.
    """
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    if share not in get_args(Sharing):
        raise InvalidValue(f"share is {share!r}; expected 'width' or 'site'")
    make = ACTIVATIONS[activation]
    if activation == "sparta":
        make = partial(Sparta, kernel_size=kernel_size, form=form)
    sites = find_sites(module, image_size, in_chans)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    shared: dict[int, nn.Module] = {}
    for site in sites:
        by_width = shared if share == "width" else {}
        for width in site.widths:
            if width not in by_width:
                by_width[width] = make(width).to(device)
        _replace(module, site, {width: by_width[width] for width in site.widths})
    return sites


class PerWidth(nn.ModuleDict):
    """One activation per width, for a module that a network calls on feature maps of several widths."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self[str(x.shape[1])](x)
        return result


class ChannelsLast(nn.Module):
    """Applies an activation for [N, C, H, W] to [N, H, W, C] tensors (ConvNeXt has them)."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return result


class _ActFn(nn.Module):
    """Adds the argument `inplace`, with which GammaAct calls its activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:  # noqa: ARG002
        result: Tensor = self.activation(x)
        return result.clone()  # GammaAct scales it in place, and ReLU's gradient needs the unscaled result


def _replace(module: nn.Module, site: Site, by_width: dict[int, nn.Module]) -> None:
    """Put the site's new activations, {width: activation}, where its old one is."""
    new: nn.Module
    if len(by_width) == 1:
        (new,) = by_width.values()
    else:
        new = PerWidth({str(width): child for width, child in by_width.items()})
    if site.layout == "NHWC":
        new = ChannelsLast(new)
    old = module.get_submodule(site.name)
    if isinstance(old, GammaAct):  # keep it: normaliser-free networks need its gain
        old.act_fn = _ActFn(new)
        return
    names = [name for name, child in module.named_modules(remove_duplicate=False) if child is old]
    for name in names:  # a module can have several names
        module.set_submodule(name, new)
