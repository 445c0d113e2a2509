"""Save, load and freeze a Sparta function: the table {key: (w, b)} of a network.

A key is a width ("64") if all sites of a width share a gate, otherwise the name of a site. The file is
safetensors; its metadata holds "format", "version" (of this file format), "share" and "form".
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
    """Return the network's Sparta modules by width ("64") if each width has one, otherwise by site.

    Raises:
        SpartaMismatch: if the network has no Sparta.
    """
    modules = sparta_modules(module)
    if not modules:
        raise SpartaMismatch("this network has no Sparta activation: build it as <backbone>_sparta")
    by_width = {str(child.channels): child for child in modules.values()}
    return by_width if len(by_width) == len(modules) else modules


def freeze_sparta(module: nn.Module) -> None:
    """Exclude the network's Sparta function from training (`requires_grad` becomes False)."""
    for child in sparta_modules(module).values():
        child.requires_grad_(False)


def save_sparta(module: nn.Module, path: str | Path) -> Path:
    """Write the network's Sparta function to a safetensors file; return its path."""
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
    """Load a Sparta function into a network; widths (or sites) that the network lacks are ignored.

    Raises:
        SpartaMismatch: if `path` is no Sparta function, lacks a width (or site) of the network, or has
            another kernel size or form.
    """
    saved, form = _read_table(Path(path))
    table = sparta_table(module)
    if other := next((child.form for child in table.values() if child.form != form), ""):
        raise SpartaMismatch(
            f"{path} has the form {form!r}, the network has {other!r}: give the same sparta.form"
        )
    missing = sorted(table.keys() - saved.keys(), key=lambda key: (len(key), key))
    if missing:
        raise SpartaMismatch(
            f"the Sparta function in {path} does not fit this network: it lacks "
            f"{', '.join(missing)}\n  network has:  {', '.join(table)}\n"
            f"  function has: {', '.join(saved)}\n"
            "Give one from a backbone with these widths and with the same sparta.share."
        )
    for key, child in table.items():
        for name, parameter in child.named_parameters():
            tensor = saved[key].get(name)
            if tensor is None or tensor.shape != parameter.shape:
                received = "is missing" if tensor is None else f"has shape {list(tensor.shape)}"
                raise SpartaMismatch(
                    f"{path}: {key}.{name} {received}, the network needs {list(parameter.shape)} "
                    "(is the kernel size the same?)"
                )
    with torch.no_grad():
        for key, child in table.items():
            for name, parameter in child.named_parameters():
                parameter.copy_(saved[key][name])


def _read_table(path: Path) -> tuple[Mapping[str, Mapping[str, Tensor]], str]:
    """Return the file's tensors by key and name, and its form."""
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
            f"{path} has file format version {metadata.get('version')}; this robust-export reads version "
            f"{FILE_VERSION}. Upgrade robust-export, or train the function again."
        )
    return table, metadata.get("form", "relu")
