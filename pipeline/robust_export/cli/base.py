"""What every command shares: the group, its errors, its interruptions."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from robust_export.errors import InvalidValue, RobustExportError
from robust_export.utils.extras import EXTRAS
from robust_export.utils.stop import Stop
from robust_export.utils.version import __version__

CRITERION_FAILED = 3  # the exit code of a gate that did not hold


class Failure(click.ClickException):
    """An error of the library, as click shows it: one message, an exit code, no traceback."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


class Commands(click.Group):
    """Turns what the library raises into what the command line prints."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RobustExportError as error:
            if error.told:
                ctx.exit(error.exit_code)
            raise Failure(str(error), error.exit_code) from error
        except ModuleNotFoundError as error:
            raise _missing(error, str(ctx.invoked_subcommand)) from error


def _missing(error: ModuleNotFoundError, command: str) -> Exception:
    """Return the failure that says which extra a command needs, or the error itself where it is another."""
    package = str(error.name)
    for extra, packages in EXTRAS.items():
        if any(f"{package}.".startswith(f"{one}.") for one in packages):
            how = f"pip install 'robust-export[{extra}]'"
            return Failure(f"{command} needs {package}, which is not installed: {how}")
    return error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="robust-export")
def cli() -> None:
    """Train adversarially robust image classifiers, export them, and prove that they still are.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a verification gate did not hold.
    """


def typed() -> str:
    """Return the running command with the options that were given to it, as one may type it again."""
    context = click.get_current_context()
    words = ["robust-export", str(context.info_name)]
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params[str(parameter.name)]
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(parameter, click.Option) and parameter.is_flag:
            words.append(parameter.opts[0])
            continue
        for one in value if parameter.multiple else (value,):
            words += [parameter.opts[0], str(one)]
    return shlex.join(words)


def alone(command: str) -> None:
    """Raise InvalidValue where a launcher started several processes of a command that shares no work."""
    from robust_export.utils.work_items import launched

    if launched()[1] > 1:
        raise InvalidValue(f"{command} does not share its work among processes: start it without a launcher")


@contextmanager
def interruptible(message: str, stop: Stop | None = None) -> Iterator[None]:
    """Turn Ctrl-C, and SIGTERM just so, into a failure with a message.

    Args:
        stop: is asked at the first signal, if it hears; a second one interrupts at once.
    """

    def interrupt(*_: object) -> None:
        if stop is None or stop.asked or not stop.heard:
            raise KeyboardInterrupt
        stop.asked = True

    signals = (signal.SIGTERM,) if stop is None else (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    except KeyboardInterrupt:
        raise Failure(message) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_by(verdict: str) -> None:
    """End with the exit code of a gate that did not hold, unless the verdict is "pass"."""
    if verdict != "pass":
        sys.exit(CRITERION_FAILED)
