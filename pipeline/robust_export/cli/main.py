"""The program `robust-export`: its commands, and how their errors become messages and exit codes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from robust_export.cli.process import CommandError
from robust_export.errors import RobustExportError
from robust_export.utils.extras import EXTRAS
from robust_export.utils.version import __version__

COMMANDS = (
    "demo", "train", "compare", "onnx", "tensorrt", "verify", "bench", "serve", "triton", "page", "plugins",
    "models", "doctor",
)  # fmt: skip
"""In the order of --help. Each is a function of this name in the module of this name in `cli.commands`."""


class CommandGroup(click.Group):
    """Imports a command when it is used; turns the library's exceptions into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"robust_export.cli.commands.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RobustExportError as error:
            if error.reported_elsewhere:
                ctx.exit(error.exit_code)
            raise CommandError(str(error), error.exit_code) from error
        except ModuleNotFoundError as error:
            raise _missing_extra(error, str(ctx.invoked_subcommand)) from error


def _missing_extra(error: ModuleNotFoundError, command: str) -> Exception:
    """Return an error that names the extra to install, or `error` if no extra has the package."""
    package = str(error.name)
    for extra, packages in EXTRAS.items():
        if any(f"{package}.".startswith(f"{name}.") for name in packages):
            advice = f"pip install 'robust-export[{extra}]'"
            return CommandError(f"{command} needs {package}, which is not installed: {advice}")
    return error


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="robust-export")
def cli() -> None:
    """Train adversarially robust image classifiers, export them, and verify the exported files.

    Exit codes: 0 success, 1 failure, 2 invalid options or values, 3 an artifact failed a verification
    criterion or there were too few images to decide.
    """
