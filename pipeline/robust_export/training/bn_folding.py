"""The network as an attack sees it: frozen, in eval mode, made to run fast.

In eval mode batch norm is an affine map of each channel. After a convolution it becomes part of it,

    w' = w * g / sqrt(v + e)        b' = (b - m) * g / sqrt(v + e) + h

m, v the running mean and variance, g, h the norm's own weight and bias: the same function up to rounding,
computed once a batch instead of once a step.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robust_export.errors import TrainingError

TOLERANCE = 1e-4  # of the largest logit, by which a folded network may differ in the trial


class FoldedCopy(nn.Module):
    """A second network that computes what `model` does in eval mode; its weights never learn.

    Args:
        model: stays as it is.
        compiled: run it through torch.compile.

    Raises:
        TrainingError: if a network cannot be folded.
    """

    def __init__(self, model: nn.Module, example: Tensor, *, fold: bool, compiled: bool) -> None:
        super().__init__()
        self.twin = copy.deepcopy(model).eval().requires_grad_(False)
        self.pairs = adjacent(self.twin, example) if fold else []
        for conv_name, norm_name in self.pairs:
            conv: Any = self.twin.get_submodule(conv_name)
            norm = self.twin.get_submodule(norm_name)
            if conv.bias is None:
                zeros = torch.zeros(conv.weight.shape[0], device=conv.weight.device)
                conv.bias = nn.Parameter(zeros, requires_grad=False)
            self.twin.set_submodule(norm_name, _rest(norm))
        self.run: Callable[[Tensor], Tensor] = torch.compile(self.twin) if compiled else self.twin
        if fold:
            self._try(model, example)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.run(pixels)

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Take over the weights of `model`, folded; once after each of its steps."""
        own = {**dict(self.twin.named_parameters()), **dict(self.twin.named_buffers())}
        theirs = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        folded = {f"{conv}.weight" for conv, _ in self.pairs} | {f"{conv}.bias" for conv, _ in self.pairs}
        for name, tensor in own.items():
            if name not in folded:
                tensor.copy_(theirs[name])
        for conv_name, norm_name in self.pairs:
            conv: Any = model.get_submodule(conv_name)
            norm: Any = model.get_submodule(norm_name)
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias,
            )  # fmt: skip
            own[f"{conv_name}.weight"].copy_(weight)
            own[f"{conv_name}.bias"].copy_(bias)

    @torch.no_grad()
    def _try(self, model: nn.Module, example: Tensor) -> None:
        """Raise TrainingError unless it computes the same as a network with norms far from their start."""
        other = copy.deepcopy(model).eval()
        generator = torch.Generator().manual_seed(0)
        for name, tensor in [*other.named_parameters(), *other.named_buffers()]:
            if isinstance(other.get_submodule(name.rpartition(".")[0]), _BatchNorm) and tensor.ndim:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        self.follow(other)
        expected, found = other(example), self.twin(example)
        if not (found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp_min(1e-6):
            raise TrainingError(
                f"batch norm cannot be folded into the convolutions of {type(model).__name__}: leave out "
                "train.fold_norms"
            )
        self.follow(model)


def adjacent(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Return the names (convolution, batch norm) where the norm's input is the convolution's output.

    Plain Conv2d only, each called once, as is its norm.
    """
    made: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no address is used twice
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def conv_hook(name: str) -> Callable[..., None]:
        def after(_: nn.Module, __: Any, output: Tensor) -> None:
            made[id(output)] = name
            kept.append(output)
            calls[name] = calls.get(name, 0) + 1

        return after

    def norm_hook(name: str) -> Callable[..., None]:
        def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            if id(args[0]) in made:
                pairs.append((made[id(args[0])], name))

        return before

    hooks = []
    for name, child in model.named_modules():
        if type(child) is nn.Conv2d:
            hooks.append(child.register_forward_hook(conv_hook(name)))
        elif isinstance(child, _BatchNorm) and child.track_running_stats and child.affine:
            hooks.append(child.register_forward_pre_hook(norm_hook(name)))
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]


def _rest(norm: nn.Module) -> nn.Module:
    """Return what a batch norm does besides normalising: timm's has an activation, by its name there."""
    return nn.Sequential(OrderedDict((p, getattr(norm, p)) for p in ("drop", "act") if hasattr(norm, p)))


# --- half precision: a gradient that neither vanishes nor overflows ---

SCALE = 1024.0  # of the attack's gradient in float16, whose smallest number is 6e-8


class Scaled(nn.Module):
    """A network whose gradient in float16 arrives: scaled by `SCALE`, what is no number made one.

    An attack needs the gradient's direction only, which a positive factor leaves as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(_Finite.apply(pixels))
        scaled: Tensor = _Times.apply(logits.float(), SCALE)  # before it is rounded to float16
        return scaled


class _Finite(torch.autograd.Function):
    """The identity; nan in its gradient becomes 0, inf the largest number."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return torch.nan_to_num(gradient)


class _Times(torch.autograd.Function):
    """The identity; its gradient is multiplied by `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
