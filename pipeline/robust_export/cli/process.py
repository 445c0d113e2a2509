"""The process of a command: exit codes, failures, interruption by signals, and launchers."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from robust_export.errors import InvalidValue
from robust_export.utils.stop import StopRequest

CRITERION_FAILED = 3  # exit code; 1 is any other failure, 2 a usage error


class CommandError(click.ClickException):
    """A failure that click prints as one message, without a traceback."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


@contextmanager
def interruptible(message: str, stop: StopRequest | None = None) -> Iterator[None]:
    """Raise CommandError with `message` if SIGINT (Ctrl-C) or SIGTERM arrives within the block.

    Args:
        stop: if given and observed, the first signal only sets `stop.requested`; a second one interrupts.
    """

    def handle(*_: object) -> None:
        if stop is None or stop.requested or not stop.observed:
            raise KeyboardInterrupt
        stop.requested = True

    signals = (signal.SIGTERM,) if stop is None else (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    except KeyboardInterrupt:
        raise CommandError(message) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_with_verdict(verdict: str) -> None:
    """Exit with code 3 unless the verdict is "pass"."""
    if verdict != "pass":
        sys.exit(CRITERION_FAILED)


def require_single_process(command: str) -> None:
    """Raise InvalidValue if a launcher such as torchrun started several processes of `command`."""
    from robust_export.utils.work_items import launched_ranks

    if launched_ranks()[1] > 1:
        raise InvalidValue(f"{command} cannot share its work among processes: start it without a launcher")
