"""Run the command line in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from robust_export.cli import cli


def run(*args: str | Path) -> Result:
    """Run `robust-export ARGS`, and capture its output and exit code."""
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def succeed(*args: str | Path) -> dict[str, Any]:
    """Run `robust-export ARGS --json`; return the JSON object, the only thing on standard output."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return parse_json(result)


def parse_json(result: Result) -> dict[str, Any]:
    """Return the JSON object on standard output; assert that nothing else is there."""
    assert result.stdout.count("\n") == 1
    value: dict[str, Any] = json.loads(result.stdout)
    return value
