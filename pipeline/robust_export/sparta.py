"""Sparta: a spatially attentive, input-dependent extension of ReLU.

    Sparta(x; w, b) = relu(x) * (2 * sigmoid(w (*) x + b))

`(*)` is a depthwise cross-correlation of stride 1 with zero padding k // 2. The gate lies in
[0, 2]; w = 0, b = 0 makes it exactly 1 and the function exactly ReLU.

The idea (spatially attentive, input-dependent, transferable between CNNs and data sets) is that of
Purohit et al., arXiv 2105.08269; this closed form is this project's own (see docs/sparta.md).

This file is the reference: the ONNX function body and every kernel are tested against it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from robust_export.config import SpartaForm
from robust_export.errors import InvalidValue, SpartaMismatch
from robust_export.files import write_atomically
from robust_export.gate import gated
from robust_export.op import DOMAIN, OPERATOR, VERSION

FILE_FORMAT = "robust-export/sparta-function"


def sparta(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return relu(x) * (2 * sigmoid(weight (*) x + bias)).

    Args:
        x: [N, C, H, W], float32, float16 or bfloat16 (float64 is accepted, for tests).
        weight: [C, 1, k, k], depthwise kernel, k odd.
        bias: [C].

    Returns:
        [N, C, H, W] in the dtype of `x`. The gate and the product are computed in float32 (float64
        for a float64 `x`) and rounded once.

    Raises:
        InvalidValue: if the shapes do not fit each other, or x is of integers.
    """
    if not x.is_floating_point():
        raise InvalidValue(f"Sparta needs floating-point planes; received {x.dtype}")
    check_shapes(tuple(x.shape), tuple(weight.shape), tuple(bias.shape))
    wide_x, attention = _attention(x, weight, bias)
    if torch.is_grad_enabled() and attention.requires_grad and not torch.compiler.is_compiling():
        return gated(wide_x, attention).to(x.dtype)
    gate = 2 * torch.sigmoid(attention)  # the gate is doubled, not x: float16 would overflow
    return (F.relu(wide_x) * gate).to(x.dtype)


def sparta_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x * sigmoid(weight (*) x + bias), the form of research that starts at SiLU.

    Shapes and dtypes are those of `sparta`. It has no kernel and no ONNX operator.
    """
    check_shapes(tuple(x.shape), tuple(weight.shape), tuple(bias.shape))
    wide_x, attention = _attention(x, weight, bias)
    return (wide_x * torch.sigmoid(attention)).to(x.dtype)


def _attention(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and weight (*) x + bias, both in float32 (float64 for a float64 `x`)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # Autocast would round the gate's input to half precision, whatever dtype it is given.
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        wide_x = x.to(wide)
        padding = weight.shape[-1] // 2
        return wide_x, F.conv2d(
            wide_x, weight.to(wide), bias.to(wide), padding=padding, groups=weight.shape[0]
        )


def check_shapes(x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
    """Raise InvalidValue unless x, weight and bias are [N, C, H, W], [C, 1, k, k], [C], k odd."""
    if len(x) != 4:
        raise InvalidValue(f"Sparta needs x of shape [N, C, H, W]; received {list(x)}")
    channels, kernel = x[1], weight[-1] if weight else 0
    if weight != (channels, 1, kernel, kernel) or kernel % 2 == 0:
        raise InvalidValue(
            f"Sparta needs a weight of shape [{channels}, 1, k, k] with k odd for x of shape "
            f"{list(x)}; received {list(weight)}"
        )
    if bias != (channels,):
        raise InvalidValue(f"Sparta needs a bias of shape [{channels}]; received {list(bias)}")


class Sparta(nn.Module):
    """The Sparta activation with its learnt gate; it starts as ReLU (weight and bias are zero).

    Args:
        channels: C, the width of the planes it attends to.
        kernel_size: k, the odd side of the neighbourhood the gate reads. 1 makes it a rectified
            per-channel Swish, 2 * relu(x) * sigmoid(w * x + b).
        form: "relu", or "silu" for x * sigmoid(w (*) x + b), which starts as SiLU (w is 1 in its centre).

    Shape: [N, C, H, W] to [N, C, H, W], dtype kept.
    """

    def __init__(self, channels: int, kernel_size: int = 3, form: SpartaForm = "relu") -> None:
        super().__init__()
        if channels < 1:
            raise InvalidValue(f"Sparta needs at least one channel; received {channels}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InvalidValue(f"Sparta needs an odd kernel_size of 1 or more; received {kernel_size}")
        self.form = form
        self.function: Callable[[Tensor, Tensor, Tensor], Tensor] = sparta  # or another that computes it
        self.weight = nn.Parameter(torch.zeros(channels, 1, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(channels))
        if form == "silu":
            with torch.no_grad():
                self.weight[:, :, kernel_size // 2, kernel_size // 2] = 1

    @property
    def channels(self) -> int:
        return self.weight.shape[0]

    @property
    def kernel_size(self) -> int:
        return self.weight.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "silu":
            return sparta_silu(x, self.weight, self.bias)
        if torch.onnx.is_in_onnx_export():
            result: Tensor = torch.onnx.ops.symbolic(
                f"{DOMAIN}::{OPERATOR}",
                (x, self.weight, self.bias),
                {"channels": self.channels},
                dtype=x.dtype,
                shape=x.shape,
                version=VERSION,
            )
            return result
        return self.function(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        form = ", form=silu" if self.form == "silu" else ""
        return f"{self.channels}, kernel_size={self.kernel_size}{form}"


# --- A Sparta function: the table {key: (w, b)} of a network, key a width or a site's name ---


def sparta_modules(module: nn.Module) -> dict[str, Sparta]:
    """Return the network's distinct Sparta modules by the first name each goes by."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Sparta)}


def sparta_table(module: nn.Module) -> dict[str, Sparta]:
    """Return the network's Sparta function: its modules keyed by width, or by site.

    Keys are widths (`"64"`) where every width has one module, sites' names otherwise.

    Raises:
        SpartaMismatch: if the network has no Sparta.
    """
    modules = sparta_modules(module)
    if not modules:
        raise SpartaMismatch("this network has no Sparta activation: build it as <backbone>_sparta")
    by_width = {str(child.channels): child for child in modules.values()}
    return by_width if len(by_width) == len(modules) else modules


def freeze_sparta(module: nn.Module) -> None:
    """Stop the network's Sparta function from learning (its gradients are not computed)."""
    for child in sparta_modules(module).values():
        child.requires_grad_(False)


def save_sparta(module: nn.Module, path: str | Path) -> Path:
    """Write the network's Sparta function, and nothing else of it, to a safetensors file."""
    table = sparta_table(module)
    tensors = {
        f"{key}.{name}": tensor.detach().to("cpu").contiguous()
        for key, child in table.items()
        for name, tensor in child.named_parameters()
    }
    share = "width" if all(key == str(child.channels) for key, child in table.items()) else "site"
    metadata = {"format": FILE_FORMAT, "version": str(VERSION), "share": share}
    if any(child.form == "silu" for child in table.values()):
        metadata["form"] = "silu"
    return write_atomically(path, save(tensors, metadata))


def load_sparta(module: nn.Module, path: str | Path) -> None:
    """Load a Sparta function into a network that has every width (or site) it needs.

    A function may know more widths than the network has; those are left out.

    Raises:
        SpartaMismatch: if `path` holds no Sparta function, or one that lacks a width of the
            network or has another kernel size or form; the message lists both sides.
    """
    saved, form = _read_table(Path(path))
    table = sparta_table(module)
    if needed := next((child.form for child in table.values() if child.form != form), ""):
        raise SpartaMismatch(
            f"{path} has the form {form!r}, the network needs {needed!r}: give the same sparta.form"
        )
    missing = sorted(table.keys() - saved.keys(), key=lambda key: (len(key), key))
    if missing:
        raise SpartaMismatch(
            f"the Sparta function in {path} does not fit this network: it lacks "
            f"{', '.join(missing)}\n  network has:  {', '.join(table)}\n"
            f"  function has: {', '.join(saved)}\n"
            "Train one on a backbone that has these widths, or share gates the same way."
        )
    for key, child in table.items():
        for name, parameter in child.named_parameters():
            tensor = saved[key].get(name)
            if tensor is None or tensor.shape != parameter.shape:
                found = "nothing" if tensor is None else list(tensor.shape)
                raise SpartaMismatch(
                    f"{path}: {key}.{name} has shape {found}, the network needs "
                    f"{list(parameter.shape)} (is the kernel size the same?)"
                )
    with torch.no_grad():
        for key, child in table.items():
            for name, parameter in child.named_parameters():
                parameter.copy_(saved[key][name])


def _read_table(path: Path) -> tuple[Mapping[str, Mapping[str, Tensor]], str]:
    """Return the tensors of a file by key and name, and its form."""
    table: dict[str, dict[str, Tensor]] = {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for full_name in file.keys():  # noqa: SIM118 (not a dict)
                key, _, name = full_name.rpartition(".")
                table.setdefault(key, {})[name] = file.get_tensor(full_name)
    except (OSError, safetensors.SafetensorError) as error:
        raise SpartaMismatch(f"{path} cannot be read as a Sparta function: {error}") from error
    if metadata.get("format") != FILE_FORMAT:
        raise SpartaMismatch(
            f"{path} is not a Sparta function (format {metadata.get('format')!r}, expected "
            f"{FILE_FORMAT!r}); give the sparta.safetensors of a bundle"
        )
    if metadata.get("version") != str(VERSION):
        raise SpartaMismatch(
            f"{path} is of version {metadata.get('version')} of Sparta; this robust-export knows "
            f"{VERSION}. Upgrade robust-export, or train the function again."
        )
    return table, metadata.get("form", "relu")


def scramble_sparta(module: nn.Module, seed: int) -> None:
    """Put the values of each weight and bias at random places: the same values, another function."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in sparta_modules(module).values():
            for parameter in (child.weight, child.bias):
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))


def keep_bias_only(module: nn.Module) -> None:
    """Make the gates constant, sigmoid(b): their weights become zero and stop learning."""
    for child in sparta_modules(module).values():
        with torch.no_grad():
            child.weight.zero_()
        child.weight.requires_grad_(False)


class _Room(ModuleType):
    """Makes `robust_export.sparta` both this module and the function, whichever is asked for."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return sparta(x, weight, bias)


sys.modules[__name__].__class__ = _Room
