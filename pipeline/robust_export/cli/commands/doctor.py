"""robust-export doctor: what is installed on this machine, and what is missing."""

from __future__ import annotations

import click

from robust_export.cli.console import Console
from robust_export.cli.options import json_option
from robust_export.cli.process import CommandError

MARKS = {"ok": "ok", "missing": "MISSING", "optional": "-"}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check what is installed on this machine.

    Lists packages, GPU, compilers, kernels and disk space, and how to get what is missing. Exits with code 1
    if something is missing that every command needs.
    """
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    from robust_export.cli.machine_checks import check_machine

    checks = check_machine()
    table = Table("", "component", "found", "how to get it")
    for check in checks:
        table.add_row(MARKS[check.status], check.name, escape(check.found), escape(check.advice))
    ready = all(check.status != "missing" for check in checks)
    Console(as_json).print_result({"ready": ready, "checks": [asdict(check) for check in checks]}, table)
    if not ready:
        raise CommandError("a component that every command needs is missing; see the table above")
