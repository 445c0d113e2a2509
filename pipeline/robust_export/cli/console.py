"""Output of a command: status lines on standard error, the result on standard output."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from robust_export.training.progress import Epoch

CLEAR_LINE = "\r\033[K"  # move the cursor to the start of the line and clear it

WIDTH = 110  # columns of a table if the output is not a terminal


class Console:
    """Prints text for people, or one JSON object on standard output if `as_json`.

    Args:
        quiet: print nothing (rank 0 of a distributed command prints for all processes).

    Attributes:
        interactive: whether status lines may overwrite each other.
    """

    def __init__(self, as_json: bool, *, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.interactive = sys.stderr.isatty() and not as_json and not quiet

    def print_status(self, line: str) -> None:
        """Print a line on standard error."""
        if not self.quiet:
            click.echo(line, err=True)

    def print_result(self, value: dict[str, Any], *tables: Table) -> None:
        """Print the result: as JSON, as tables if any are given, or one line per entry."""
        if self.quiet:
            return
        if self.as_json:
            click.echo(json.dumps(value, allow_nan=False))
        elif tables:
            _print_tables(tables)
        else:
            for key, entry in value.items():
                click.echo(f"{key}: {entry}")

    def print_epoch(self, epoch: Epoch, epochs: int) -> None:
        """Print the losses and accuracies of an epoch, and the estimated time left."""
        if self.quiet:
            return
        left = epoch.seconds * (epochs - epoch.epoch)
        line = (
            f"epoch {epoch.epoch}/{epochs}  loss {epoch.loss:.3f}  val clean {epoch.clean_accuracy:.1%}"
            f"  robust {epoch.robust_accuracy:.1%}  {_format_duration(left)} left"
        )
        click.echo(f"{CLEAR_LINE}{line}" if self.interactive else line, err=True)

    def print_step(self, epoch: int, step: int, steps: int) -> None:
        """Print the progress within an epoch, on a terminal only."""
        self.print_progress(f"epoch {epoch}: step {step} of {steps}")

    def print_progress(self, line: str) -> None:
        """Print a line that the next one overwrites, on a terminal only."""
        if self.interactive:
            click.echo(f"{CLEAR_LINE}{line}", err=True, nl=False)


def _print_tables(tables: tuple[Table, ...]) -> None:
    from rich.console import Console as RichConsole

    output = RichConsole()
    if not output.is_terminal:
        output = RichConsole(width=WIDTH)
    for table in tables:
        output.print(table)


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
