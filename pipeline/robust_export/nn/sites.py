"""Find the sites of a CNN: the places where it applies a pointwise activation to a feature map.

Two forward passes on torch's meta device (shapes only), with images of 128 and 192 pixels, tell feature maps
from other tensors: the dimensions that grow are spatial, the one that does not is the channels. An activation
whose input has no spatial dimensions (squeeze-and-excite, a classifier head) is not a site.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import timm.layers.activations as timm_activations
import torch
import torch.nn.functional as F
from timm.models.nfnet import GammaAct
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robust_export.errors import UnsupportedModel, reason
from robust_export.nn.pssilu import ParametricShiftedSiLU
from robust_export.nn.sparta import Sparta

POINTWISE: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU,
    nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus,
    timm_activations.Swish, timm_activations.Mish, timm_activations.PReLU,
    timm_activations.HardSwish, timm_activations.HardMish, timm_activations.GELU,
    timm_activations.GELUTanh, timm_activations.QuickGELU, ParametricShiftedSiLU,
)  # fmt: skip
"""Activations that can be replaced. Sigmoid and the like are not: networks use them for attention."""

ACTIVATION_MODULES: tuple[type[nn.Module], ...] = (*POINTWISE, GammaAct, Sparta)

FUNCTIONAL = frozenset(
    {F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish}
    | {F.hardswish, F.softplus, F.prelu, F.rrelu, torch.relu, torch.relu_, torch.selu, torch.celu}
    | {F.elu_, F.leaky_relu_, F.rrelu_, torch.celu_, torch.selu_, torch.prelu, torch.rrelu}
    | {Tensor.relu, Tensor.relu_, Tensor.prelu}
)
"""The same activations as functions."""

NO_FEATURE_MAP = (
    "has no pointwise activation on a feature map [N, C, H, W], so Sparta cannot be used. Give a "
    "convolutional backbone: `robust-export models` lists them."
)

Layout = Literal["NCHW", "NHWC"]
Shape = tuple[int, ...]

FUNCTION = "function "  # prefix of the recorded name of a function call outside of any activation module
SPATIAL_SIZES = (128, 192)  # of the two forward passes
LAYOUTS: dict[tuple[bool, ...], Layout] = {(False, True, True): "NCHW", (True, True, False): "NHWC"}
"""Layout by which of a tensor's dimensions 1 to 3 grow with the image."""


@dataclass(frozen=True)
class Site:
    """An activation module by name, with the widths (numbers of channels) and layout of its feature maps."""

    name: str
    widths: tuple[int, ...]  # more than one if the network calls the module on several feature maps
    layout: Layout


def find_sites(module: nn.Module, image_size: int = 128, in_chans: int = 3) -> list[Site]:
    """Return the sites of a network in the order of their calls.

    Args:
        module: takes [N, in_chans, H, W].
        image_size: H = W, for a network that takes one size only.
        in_chans: number of input channels.

    Raises:
        UnsupportedModel: if there is none, if a module is called on feature maps and on other tensors, or if
            an activation is called as a function on a feature map.
    """
    try:
        small, large = (_record_shapes(module, size, in_chans) for size in SPATIAL_SIZES)
    except Exception:  # a network of one input size can raise anything for another
        small, large = {}, _record_shapes_or_raise(module, image_size, in_chans)
    candidates = [_site(name, small.get(name), shapes) for name, shapes in large.items()]
    sites = [site for site in candidates if site is not None]
    if not sites:
        raise UnsupportedModel(f"{type(module).__name__} {NO_FEATURE_MAP}")
    return sites


def _site(name: str, small: list[Shape] | None, large: list[Shape]) -> Site | None:
    """Return the site if all calls are on feature maps, None if no call is.

    Args:
        name: of the module, or of a function with the prefix `FUNCTION`.
        small: input shape of each call for the smaller image; None if the network takes one size only.
        large: for the larger image.
    """
    calls = zip(small or [()] * len(large), large, strict=True)
    layouts = [_layout(before, after) for before, after in calls]
    if not any(layouts):
        return None
    if name.startswith(FUNCTION):
        raise UnsupportedModel(
            f"this network calls {name.removeprefix(FUNCTION)} as a function on feature maps (of shape "
            f"{list(large[0])} and others); only activations that are modules can be replaced. Use "
            "another backbone: `robust-export models` lists them."
        )
    if len(set(layouts)) > 1:
        raise UnsupportedModel(
            f"activation {name!r} is called both on feature maps and on other tensors ({large}): "
            "it cannot be replaced. Use another backbone."
        )
    channels = 1 if layouts[0] == "NCHW" else 3
    return Site(name, tuple(dict.fromkeys(shape[channels] for shape in large)), layouts[0] or "NCHW")


def _layout(small: Shape, large: Shape) -> Layout | None:
    """Return the layout of a feature map from its shapes at both image sizes, None for another tensor."""
    if len(large) != 4:
        return None
    if not small:  # one image size only: equal spatial dimensions above 1 mark a feature map
        _, a, b, c = large
        return "NCHW" if b == c > 1 else "NHWC" if a == b > 1 else None
    return LAYOUTS.get(tuple(a != b for a, b in zip(small[1:], large[1:], strict=True)))


def _record_shapes_or_raise(module: nn.Module, image_size: int, in_chans: int) -> dict[str, list[Shape]]:
    try:
        return _record_shapes(module, image_size, in_chans)
    except Exception as error:
        raise UnsupportedModel(
            f"{type(module).__name__} does not run on images of {image_size} x {image_size} with "
            f"{in_chans} channels: {reason(error)}"
        ) from error


class _Recorder(TorchFunctionMode):
    """Records input shapes of activation modules, and of activation functions outside of such modules."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.shapes: dict[str, list[Shape]] = {}
        self.depth = 0  # of nested activation modules
        for name, child in module.named_modules():
            if isinstance(child, ACTIVATION_MODULES):
                child.register_forward_pre_hook(partial(self._enter, name))
                child.register_forward_hook(self._leave)

    def _enter(self, name: str, child: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.depth += 1
        if not isinstance(child, Sparta):
            self.shapes.setdefault(name, []).append(tuple(args[0].shape))

    def _leave(self, *_: object) -> None:
        self.depth -= 1

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        x = args[0] if args else next(iter((kwargs or {}).values()), None)
        if func in FUNCTIONAL and self.depth == 0 and isinstance(x, Tensor):
            self.shapes.setdefault(f"{FUNCTION}{func.__name__}", []).append(tuple(x.shape))
        return func(*args, **(kwargs or {}))


def _record_shapes(module: nn.Module, image_size: int, in_chans: int) -> dict[str, list[Shape]]:
    """Return the input shapes of every activation by name, in the order of the calls."""
    replica: nn.Module = copy.deepcopy(module).to("meta", torch.float32).eval()
    recorder = _Recorder(replica)
    with torch.no_grad(), recorder:
        replica(torch.zeros(2, in_chans, image_size, image_size, device="meta"))
    return recorder.shapes
