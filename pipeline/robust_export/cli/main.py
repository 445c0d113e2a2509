"""The program `robust-export`: its commands, and how their errors become messages and exit codes."""

from __future__ import annotations

from typing import Any

import click

from robust_export.cli.commands.bench import bench
from robust_export.cli.commands.compare import compare
from robust_export.cli.commands.demo import demo
from robust_export.cli.commands.doctor import doctor
from robust_export.cli.commands.models import models
from robust_export.cli.commands.onnx import onnx
from robust_export.cli.commands.page import page
from robust_export.cli.commands.plugins import plugins
from robust_export.cli.commands.serve import serve
from robust_export.cli.commands.tensorrt import tensorrt
from robust_export.cli.commands.train import train
from robust_export.cli.commands.triton import triton
from robust_export.cli.commands.verify import verify
from robust_export.cli.process import CommandError
from robust_export.errors import RobustExportError
from robust_export.utils.extras import EXTRAS
from robust_export.utils.version import __version__


class ErrorHandlingGroup(click.Group):
    """Commands, in the order in which they were added; exceptions become messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

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


@click.group(cls=ErrorHandlingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="robust-export")
def cli() -> None:
    """Train adversarially robust image classifiers, export them, and verify the exported files.

    Exit codes: 0 success, 1 failure, 2 invalid options or values, 3 an artifact failed a verification
    criterion or there were too few images to decide.
    """


COMMANDS: tuple[click.Command, ...] = (
    demo, train, compare, onnx, tensorrt, verify, bench, serve, triton, page, plugins, models, doctor,
)  # fmt: skip

for command in COMMANDS:
    cli.add_command(command)
