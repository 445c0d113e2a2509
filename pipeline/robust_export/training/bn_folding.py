"""Fold batch norm into the convolutions of a frozen copy of the model, so that attacks run faster.

In eval mode batch norm is an affine map of each channel. After a convolution it becomes part of it:

    w' = w * g / sqrt(v + e)        b' = (b - m) * g / sqrt(v + e) + h

m, v are the running mean and variance, g, h the weight and bias of the norm. The function is the same up to
rounding. Folding happens once per batch; without it, every step of an attack would compute the norms.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robust_export.errors import TrainingError

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)  # those that follow a Conv2d
TOLERANCE = 1e-4  # max abs difference of logits in the check, relative to the largest logit


class FoldedCopy(nn.Module):
    """A frozen copy of a model that computes what the model computes in eval mode.

    Args:
        model: the model to copy; not changed.
        example: [2, C, H, W], to find and check the foldable norms.
        fold: fold batch norm into the convolutions.
        compiled: run the copy through torch.compile.

    Raises:
        TrainingError: if folding changes the function that the model computes.
    """

    def __init__(self, model: nn.Module, example: Tensor, *, fold: bool, compiled: bool) -> None:
        super().__init__()
        self.copied = copy.deepcopy(model).eval().requires_grad_(False)
        self.pairs = conv_norm_pairs(self.copied, example) if fold else []
        for conv_name, norm_name in self.pairs:
            conv: Any = self.copied.get_submodule(conv_name)
            norm = self.copied.get_submodule(norm_name)
            if conv.bias is None:
                zeros = torch.zeros(conv.weight.shape[0], device=conv.weight.device)
                conv.bias = nn.Parameter(zeros, requires_grad=False)
            self.copied.set_submodule(norm_name, _without_normalisation(norm))
        self.run: Callable[[Tensor], Tensor] = torch.compile(self.copied) if compiled else self.copied
        if fold:
            self._check(model, example)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.run(pixels)

    @torch.no_grad()
    def copy_weights(self, model: nn.Module) -> None:
        """Copy the weights and buffers of `model` and fold them; needed after each optimisation step."""
        own = {**dict(self.copied.named_parameters()), **dict(self.copied.named_buffers())}
        source = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        folded = {f"{conv}.weight" for conv, _ in self.pairs} | {f"{conv}.bias" for conv, _ in self.pairs}
        for name, tensor in own.items():
            if name not in folded:
                tensor.copy_(source[name])
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
    def _check(self, model: nn.Module, example: Tensor) -> None:
        """Raise TrainingError unless the copy agrees with a model whose norms are random."""
        randomised = copy.deepcopy(model).eval()
        generator = torch.Generator().manual_seed(0)
        for name, tensor in [*randomised.named_parameters(), *randomised.named_buffers()]:
            if isinstance(randomised.get_submodule(name.rpartition(".")[0]), BATCH_NORMS) and tensor.ndim:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        self.copy_weights(randomised)
        expected, actual = randomised(example), self.copied(example)
        if not (actual - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp_min(1e-6):
            raise TrainingError(
                f"batch norm cannot be folded into the convolutions of {type(model).__name__}: set "
                "train.fold_norms to false"
            )
        self.copy_weights(model)


def conv_norm_pairs(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Return the names (convolution, norm) of all batch norms whose input is a convolution's output.

    Only Conv2d itself, not subclasses; convolution and norm must each be called exactly once.
    """
    producer: dict[int, str] = {}  # id of an output: name of its convolution
    outputs: list[Tensor] = []  # kept alive, so that ids stay unique
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def conv_hook(name: str) -> Callable[..., None]:
        def after(_: nn.Module, __: Any, output: Tensor) -> None:
            producer[id(output)] = name
            outputs.append(output)
            calls[name] = calls.get(name, 0) + 1

        return after

    def norm_hook(name: str) -> Callable[..., None]:
        def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            if id(args[0]) in producer:
                pairs.append((producer[id(args[0])], name))

        return before

    hooks = []
    for name, child in model.named_modules():
        if type(child) is nn.Conv2d:
            hooks.append(child.register_forward_hook(conv_hook(name)))
        elif isinstance(child, BATCH_NORMS) and child.track_running_stats and child.affine:
            hooks.append(child.register_forward_pre_hook(norm_hook(name)))
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]


def _without_normalisation(norm: nn.Module) -> nn.Module:
    """Return the dropout and activation that timm's batch norm modules contain, under their names there."""
    return nn.Sequential(OrderedDict((p, getattr(norm, p)) for p in ("drop", "act") if hasattr(norm, p)))
