"""What a command says: progress on standard error, results on standard output."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console as Terminal
from rich.table import Table

if TYPE_CHECKING:
    from robust_export.training.progress import Epoch

CLEAR = "\r\033[K"  # back to the start of the terminal's line, and clear it

WIDTH = 110  # columns, where the output is no terminal


class Console:
    """Prints for people, or with `as_json` one JSON object on standard output.

    Args:
        quiet: print nothing: another process of the same work does.
    """

    def __init__(self, as_json: bool, *, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.live = sys.stderr.isatty() and not as_json and not quiet

    def say(self, line: str) -> None:
        """Print a line of progress."""
        if self.quiet:
            return
        click.echo(line, err=True)

    def show(self, value: dict[str, Any], *tables: Table) -> None:
        """Print a result: its JSON, or its tables, or a line for each of its entries."""
        if self.quiet:
            return
        if self.as_json:
            click.echo(json.dumps(value, allow_nan=False))
            return
        terminal = Terminal()
        if not terminal.is_terminal:
            terminal = Terminal(width=WIDTH)
        for table in tables:
            terminal.print(table)
        if not tables:
            for key, entry in value.items():
                click.echo(f"{key}: {entry}")

    def epoch(self, epoch: Epoch, epochs: int) -> None:
        """Print how training goes: a line an epoch."""
        if self.quiet:
            return
        left = epoch.seconds * (epochs - epoch.epoch)
        line = (
            f"epoch {epoch.epoch}/{epochs}  loss {epoch.loss:.3f}  val clean {epoch.clean_accuracy:.1%}"
            f"  robust {epoch.robust_accuracy:.1%}  {_duration(left)} left"
        )
        click.echo(f"{CLEAR}{line}" if self.live else line, err=True)

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Print, on a terminal only, how far an epoch is; the next line takes its place."""
        if self.live:
            click.echo(f"{CLEAR}epoch {epoch}: step {step} of {steps}", err=True, nl=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
