"""A Sparta function: the table {key: (w, b)} of a network, saved and loaded on its own.

A key is a width ("64") where all activations of one width share one gate, and a site's name otherwise. The
file is safetensors, with format, version, sharing and form in its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from robust_export.errors import SpartaMismatch
from robust_export.nn.sparta import Sparta, sparta_modules
from robust_export.utils.files import write_atomically

FILE_FORMAT = "robust-export/sparta-function"
FILE_VERSION = 1


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
    metadata = {"format": FILE_FORMAT, "version": str(FILE_VERSION), "share": share}
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
    if metadata.get("version") != str(FILE_VERSION):
        raise SpartaMismatch(
            f"{path} is of version {metadata.get('version')} of Sparta; this robust-export knows "
            f"{FILE_VERSION}. Upgrade robust-export, or train the function again."
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
