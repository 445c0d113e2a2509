"""robust-export demo: the whole pipeline on a small data set."""

from __future__ import annotations

import click

from robust_export.cli.console import Console
from robust_export.cli.options import json_option
from robust_export.cli.process import exit_with_verdict, interruptible, require_single_process


@click.command()
@json_option
def demo(as_json: bool) -> None:
    """Train, export and verify a small network, in minutes.

    The data set is scikit-learn's digits. Writes the bundle exported/demo, and compares it with the same
    network trained without attacks. An existing exported/demo is replaced once the new one is complete.
    """
    require_single_process("demo")
    console = Console(as_json)
    with interruptible("the demo was interrupted; an existing exported/demo is unchanged"):
        from robust_export.cli.demo_pipeline import run_demo

        result = run_demo(say=console.print_status, on_epoch=console.print_epoch)
    console.print_result(result.to_dict(), *result.tables())
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    console.print_status(f"wrote the bundle {result.bundle} ({stages})")
    exit_with_verdict(result.report.verdict)
