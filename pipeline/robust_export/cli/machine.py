"""The commands about this machine and what it has: models, doctor, plugins."""

from __future__ import annotations

import json
from typing import Any

import click

from robust_export.cli.base import Failure, cli, interruptible
from robust_export.cli.console import Console
from robust_export.cli.options import json_option


@cli.command()
@click.argument("filter", default="")
@json_option
def models(filter: str, as_json: bool) -> None:
    """List every name that train's --model takes; FILTER keeps those that contain it."""
    from robust_export.nn.models import model_names

    names = [name for name in model_names() if filter in name]
    if not names:
        raise Failure(f"no model's name contains {filter!r}; `robust-export models` lists all")
    if as_json:
        click.echo(json.dumps({"models": names}))
    else:
        click.echo("\n".join(names))


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can do, and what is missing for the rest."""
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    from robust_export.cli.doctor import examine

    console = Console(as_json)
    checks = examine()
    table = Table("", "what", "found", "to get it")
    marks = {"ok": "ok", "missing": "MISSING", "optional": "-"}
    for check in checks:
        table.add_row(marks[check.status], check.name, escape(check.found), escape(check.advice))
    ready = all(check.status != "missing" for check in checks)
    console.show({"ready": ready, "checks": [asdict(check) for check in checks]}, table)
    if not ready:
        raise Failure("something that robust-export needs is missing; see the table above")


@cli.group()
def plugins() -> None:
    """Build Sparta's compiled kernels, and say which there are."""


@plugins.command()
@click.option("--force", is_flag=True, help="Build again what is built already.")
@json_option
def build(force: bool, as_json: bool) -> None:
    """Build the kernels for this machine with CMake, into the cache.

    Without nvcc and TensorRT's headers there is none for TensorRT, which is no failure.
    """
    from robust_export.kernels.building import build as build_kernels
    from robust_export.kernels.status import describe

    console = Console(as_json)
    console.say("building Sparta's kernels")
    with interruptible("the build was interrupted; an older one is untouched"):
        built = build_kernels(force)
    if as_json:
        console.show(describe())
    if built.without_cuda:
        console.say(f"without the kernel for GPUs: {built.without_cuda}")
    console.say(f"built {built.path} with {built.tools.version}, ONNX Runtime's headers from {built.headers}")
    if built.without_tensorrt:
        console.say(f"without the TensorRT plugin: {built.without_tensorrt}")
    if built.tensorrt:
        console.say(f"built {built.tensorrt} for GPUs {built.architectures}, {built.tensorrt_headers}")


@plugins.command()
@json_option
def info(as_json: bool) -> None:
    """Say what was found, built and loaded."""
    from rich.table import Table

    from robust_export.kernels.status import describe

    facts = describe()
    table = Table("library", "loads")
    table.add_column("found", overflow="fold")
    for name, entry in facts["libraries"].items():
        table.add_row(name, _loads(entry), entry["path"] or "-")
    Console(as_json).show(facts, table)


def _loads(entry: dict[str, Any]) -> str:
    if not entry["loads"]:
        return str(entry["why"])
    if entry.get("info"):
        return f"yes: {entry['info']}"
    if "instructions" not in entry:
        return "yes"
    gpu = "; CUDA kernel built, not run on a GPU here" if entry["cuda"] else ""
    return f"yes, with {entry['instructions']} instructions{gpu}"
