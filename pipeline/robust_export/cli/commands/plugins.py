"""robust-export plugins: build the compiled Sparta kernels, and show which exist."""

from __future__ import annotations

from typing import Any

import click

from robust_export.cli.console import Console
from robust_export.cli.options import json_option
from robust_export.cli.process import interruptible


@click.group()
def plugins() -> None:
    """Build the compiled Sparta kernels, or show which exist."""


@plugins.command()
@click.option("--force", is_flag=True, help="Build even if this version was built before.")
@json_option
def build(force: bool, as_json: bool) -> None:
    """Compile the kernels for this machine with CMake, into the cache folder.

    Builds the library for ONNX Runtime and, if nvcc and TensorRT's headers are found, the TensorRT plugin.
    """
    from robust_export.kernels.building import build as build_kernels
    from robust_export.kernels.status import describe

    console = Console(as_json)
    console.print_status("building Sparta's kernels")
    with interruptible("the build was interrupted; an earlier build is unchanged"):
        built = build_kernels(force)
    if as_json:
        console.print_result(describe())
    if built.without_cuda:
        console.print_status(f"without the GPU kernel: {built.without_cuda}")
    console.print_status(
        f"built {built.path} with {built.tools.version}, ONNX Runtime's headers from {built.headers}"
    )
    if built.without_tensorrt:
        console.print_status(f"without the TensorRT plugin: {built.without_tensorrt}")
    if built.tensorrt:
        console.print_status(
            f"built {built.tensorrt} for GPUs {built.architectures}, {built.tensorrt_headers}"
        )


@plugins.command()
@json_option
def info(as_json: bool) -> None:
    """Show which kernel libraries exist, and whether they can be loaded."""
    from rich.table import Table

    from robust_export.kernels.status import describe

    facts = describe()
    table = Table("library", "loads")
    table.add_column("path", overflow="fold")
    for name, entry in facts["libraries"].items():
        table.add_row(name, _describe_loading(entry), entry["path"] or "-")
    Console(as_json).print_result(facts, table)


def _describe_loading(entry: dict[str, Any]) -> str:
    if not entry["loads"]:
        return str(entry["why"])
    if entry.get("info"):
        return f"yes: {entry['info']}"
    if "instructions" not in entry:
        return "yes"
    gpu = ", and a CUDA kernel" if entry["cuda"] else ""
    return f"yes, with {entry['instructions']} instructions{gpu}"
