"""Finds the pointwise activations of a CNN that sit on a plane, and replaces them.

Two shape-only forward passes (on torch's meta device, at two image sizes) tell where: the dimension
of an activation's input that stays while the others grow is its channels. An activation whose input
has no growing plane (a squeeze-and-excite branch, a classifier head) stays what it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from typing import Any, Literal

import timm
import timm.layers.activations as timm_activations
import torch
import torch.nn.functional as F
from timm.models.nfnet import GammaAct
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robust_export.errors import InvalidValue, UnsupportedModel, reason, unknown
from robust_export.nn.pssilu import ParametricShiftedSiLU
from robust_export.nn.sparta import Sparta
from robust_export.recipe.schema import SpartaForm

POINTWISE: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU,
    nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus,
    timm_activations.Swish, timm_activations.Mish, timm_activations.PReLU,
    timm_activations.HardSwish, timm_activations.HardMish, timm_activations.GELU,
    timm_activations.GELUTanh, timm_activations.QuickGELU, ParametricShiftedSiLU,
)  # fmt: skip
"""Activations that take the place of a ReLU. Sigmoid and its kin are gates, and stay."""

REPLACEABLE: tuple[type[nn.Module], ...] = (*POINTWISE, GammaAct)
WATCHED: tuple[type[nn.Module], ...] = (*REPLACEABLE, Sparta)
LEARNT = (Sparta, ParametricShiftedSiLU)  # with parameters of their own, which every width or site has

FUNCTIONAL = frozenset(
    {F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish}
    | {F.hardswish, F.softplus, F.prelu, F.rrelu, torch.relu, torch.relu_, torch.selu, torch.celu}
    | {F.elu_, F.leaky_relu_, F.rrelu_, torch.celu_, torch.selu_, torch.prelu, torch.rrelu}
    | {Tensor.relu, Tensor.relu_, Tensor.prelu}
)

WITHOUT_FEATURE_MAPS = frozenset(
    {
        "beit", "cait", "coat", "convit", "crossvit", "davit", "deepseek_vit", "deit", "eva",
        "gemma4_vit", "hiera", "mlp_mixer", "mvitv2", "naflexvit", "nest", "pit", "qwen3_vit",
        "swin_transformer", "swin_transformer_v2_cr", "tnt", "twins", "vision_transformer",
        "vision_transformer_relpos", "vision_transformer_sam",
    }
)  # fmt: skip
"""timm's modules whose networks have no activation on a plane (tests/survey_models.py finds them)."""

WITHOUT_FEATURE_MAPS_PATTERNS = (
    "ese_vovnet39b_evos",
    "pvt_v2_b[0-5]",
    "regnetz_*_evos",
    "resnetv2_50d_evos",
    "resnetv2_50d_frn",
    "test_efficientnet_evos",
)
"""Names of single networks, in other modules, whose activations are part of a normalisation."""

NO_FEATURE_MAP = (
    "has no pointwise activation on an [N, C, H, W] plane, so there is nothing for Sparta to attend "
    "to. Use a convolutional backbone: `robust-export models` lists them."
)

Share = Literal["width", "site"]
Layout = Literal["NCHW", "NHWC"]
Factory = Callable[[int], nn.Module]  # of an activation, from its number of channels

ACTIVATIONS: dict[str, Factory] = {
    "sparta": Sparta,
    "relu": lambda _: nn.ReLU(),
    "silu": lambda _: nn.SiLU(),
    "gelu": lambda _: nn.GELU(),
    "softplus": lambda _: nn.Softplus(),
    "pssilu": lambda _: ParametricShiftedSiLU(),
}
"""Every activation that a model's name can end in."""


@dataclass(frozen=True)
class Site:
    """One activation module of a network: its name, and the planes it is called on."""

    name: str
    widths: tuple[int, ...]  # more than one where a network calls one module on several planes
    layout: Layout


def replace_activations(
    module: nn.Module,
    activation: str = "sparta",
    *,
    share: Share = "width",
    kernel_size: int = 3,
    form: SpartaForm = "relu",
    image_size: int = 128,
    in_chans: int = 3,
) -> list[Site]:
    """Replace, in place, every pointwise activation that sits on a plane; return the sites.

    Args:
        module: a CNN that takes [N, in_chans, H, W]. If its activations are ReLUs, its outputs
            stay the same to the last bit when they become Sparta.
        activation: a key of `ACTIVATIONS`.
        share: one Sparta (or PSSiLU) for all sites of a width, or one for each site.
        kernel_size: of Sparta's gate, odd.
        form: of Sparta, see its class.
        image_size: H = W, for a network that takes one size only.

    Raises:
        UnknownName: for an unknown activation.
        UnsupportedModel: if no activation sits on a plane, or one is called as a function.
    """
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    if share not in ("width", "site"):
        raise InvalidValue(f"share is {share!r}; expected 'width' or 'site'")
    make = ACTIVATIONS[activation]
    if activation == "sparta":
        make = partial(Sparta, kernel_size=kernel_size, form=form)
    sites = find_sites(module, image_size, in_chans)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    by_width: dict[int, nn.Module] = {}
    for site in sites:
        table = by_width if share == "width" else {}
        for width in site.widths:
            if width not in table:
                table[width] = make(width).to(device)
        _put(module, site, {width: table[width] for width in site.widths})
    return sites


def convertible_backbones() -> list[str]:
    """Return the names of timm's networks that have activations on planes."""
    modules = sorted(set(timm.list_modules()) - WITHOUT_FEATURE_MAPS)
    names = {name for module in modules for name in timm.list_models(module=module)}
    excluded = WITHOUT_FEATURE_MAPS_PATTERNS
    return sorted(name for name in names if not any(fnmatch(name, p) for p in excluded))


def find_sites(module: nn.Module, image_size: int = 128, in_chans: int = 3) -> list[Site]:
    """Return the pointwise activations that sit on a plane, in the order they are called."""
    try:
        small, large = (_record_shapes(module, size, in_chans) for size in (128, 192))
    except Exception:  # a network of one input size; it can fail in any way of its own
        small, large = {}, _record_shapes_or_explain(module, image_size, in_chans)
    sites = [_site(name, small.get(name), shapes) for name, shapes in large.items()]
    found = [site for site in sites if site is not None]
    if not found:
        raise UnsupportedModel(f"{type(module).__name__} {NO_FEATURE_MAP}")
    return found


class PerWidth(nn.ModuleDict):
    """The activation of a module that a network calls on planes of several widths."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self[str(x.shape[1])](x)
        return result


class ChannelsLast(nn.Module):
    """An activation on [N, H, W, C] tensors (as in ConvNeXt), around one for [N, C, H, W]."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return result


class _ActFn(nn.Module):
    """Gives an activation the `inplace` argument with which GammaAct calls its function."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:  # noqa: ARG002
        result: Tensor = self.activation(x)
        return result.clone()  # GammaAct multiplies it in place, and ReLU's gradient needs its result


def learnt_modules(module: nn.Module) -> list[nn.Module]:
    """Return the network's activations that have parameters of their own, each once."""
    return [child for child in module.modules() if isinstance(child, LEARNT)]


def _put(module: nn.Module, site: Site, by_width: dict[int, nn.Module]) -> None:
    new: nn.Module
    if len(by_width) == 1:
        (new,) = by_width.values()
    else:
        new = PerWidth({str(width): child for width, child in by_width.items()})
    if site.layout == "NHWC":
        new = ChannelsLast(new)
    old = module.get_submodule(site.name)
    if isinstance(old, GammaAct):  # keeps its gain, which a normaliser-free network relies on
        old.act_fn = _ActFn(new)
        return
    names = [name for name, child in module.named_modules(remove_duplicate=False) if child is old]
    for name in names:  # a module may be known under several names
        module.set_submodule(name, new)


Shapes = list[tuple[int, ...]]

FUNCTION = "function "  # marks the records of calls that are no module's

LAYOUTS: dict[tuple[bool, ...], Layout] = {(False, True, True): "NCHW", (True, True, False): "NHWC"}


def _site(name: str, small: Shapes | None, large: Shapes) -> Site | None:
    """Return the site if its inputs are planes at every call, None if they are at none."""
    calls = zip(small or [()] * len(large), large, strict=True)
    layouts = [_layout(before, after) for before, after in calls]
    if not any(layouts):
        return None
    if name.startswith(FUNCTION):
        raise UnsupportedModel(
            f"this network calls {name.removeprefix(FUNCTION)} as a function on planes (of shape "
            f"{list(large[0])} and others); only activations that are modules can be replaced. Use "
            "another backbone: `robust-export models` lists them."
        )
    if len(set(layouts)) > 1:
        raise UnsupportedModel(
            f"activation {name!r} is called on planes and on other tensors alike ({large}): "
            "it cannot be replaced. Use another backbone."
        )
    channels = 1 if layouts[0] == "NCHW" else 3
    return Site(name, tuple(dict.fromkeys(shape[channels] for shape in large)), layouts[0] or "NCHW")


def _layout(small: tuple[int, ...], large: tuple[int, ...]) -> Layout | None:
    if len(large) != 4:
        return None
    if not small:  # one size only: images are square, and so is a plane of more than a pixel
        _, a, b, c = large
        return "NCHW" if b == c > 1 else "NHWC" if a == b > 1 else None
    grows = tuple(a != b for a, b in zip(small[1:], large[1:], strict=True))
    return LAYOUTS.get(grows)


def _record_shapes_or_explain(module: nn.Module, image_size: int, in_chans: int) -> dict[str, Shapes]:
    try:
        return _record_shapes(module, image_size, in_chans)
    except Exception as error:
        raise UnsupportedModel(
            f"{type(module).__name__} does not run on images of {image_size} x {image_size} with "
            f"{in_chans} channels: {reason(error)}"
        ) from error


def _record_shapes(module: nn.Module, image_size: int, in_chans: int) -> dict[str, Shapes]:
    """Return the input shapes of every pointwise activation module, by name, in call order."""
    twin: nn.Module = copy.deepcopy(module).to("meta", torch.float32).eval()
    shapes: dict[str, Shapes] = {}
    depth = 0

    def enter(name: str, child: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal depth
        depth += 1
        if not isinstance(child, Sparta):
            shapes.setdefault(name, []).append(tuple(args[0].shape))

    def leave(*_: object) -> None:
        nonlocal depth
        depth -= 1

    for name, child in twin.named_modules():
        if isinstance(child, WATCHED):
            child.register_forward_pre_hook(partial(enter, name))
            child.register_forward_hook(leave)

    class Functions(TorchFunctionMode):
        """Records calls of F.relu and its kin outside of activation modules."""

        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            x = args[0] if args else next(iter((kwargs or {}).values()), None)
            if func in FUNCTIONAL and depth == 0 and isinstance(x, Tensor):
                shapes.setdefault(f"{FUNCTION}{func.__name__}", []).append(tuple(x.shape))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Functions():
        twin(torch.zeros(2, in_chans, image_size, image_size, device="meta"))
    return shapes
