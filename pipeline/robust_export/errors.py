"""Exceptions for failures that a user can cause or fix.

A message says what was received, what was expected and what to do. The command line prints it without a
traceback and exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RobustExportError(Exception):
    """Base class of all of them.

    Attributes:
        exit_code: of the command line.
        reported_elsewhere: whether another process of the same distributed run prints the message.
    """

    exit_code = 1
    reported_elsewhere = False


class UnknownName(RobustExportError):
    """An unknown name of a model, data set, option or recipe key."""

    exit_code = 2


class InvalidValue(RobustExportError):
    """A value of the wrong type or out of range."""

    exit_code = 2


class UnsupportedModel(RobustExportError):
    """A network that cannot be built, converted or exported."""


class SpartaMismatch(RobustExportError):
    """A Sparta function that does not fit the network: other widths, kernel size or form."""


class DataError(RobustExportError):
    """A missing, empty or damaged data set."""


class BundleError(RobustExportError):
    """A missing, unfinished or altered bundle, or one of a newer schema."""


class ArtifactError(RobustExportError):
    """An artifact that is damaged or cannot run here, or that does not belong to the bundle."""


class BuildError(RobustExportError):
    """Kernels that cannot be built or loaded, for a missing or failing compiler, header or library."""


class TrainingError(RobustExportError):
    """A training run that cannot start, continue or be resumed."""


class TrainingStopped(TrainingError):
    """A training run that was stopped by request, with its state saved."""


def reason(error: BaseException) -> str:
    r"""Return the first line of an exception's message, or its type if the message is empty.

    >>> reason(TimeoutError()), reason(ValueError("no\nstack trace"))
    ('TimeoutError', 'no')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unknown(kind: str, received: str, known: Iterable[str], hint: str = "") -> UnknownName:
    """Return the error for an unknown name, with the nearest known names.

    Args:
        kind: what the name is of, such as "model".
        received: the unknown name.
        known: all known names.
        hint: a second line of the message.

    >>> str(unknown("norm", "Linv", ["Linf", "L2"]))
    "unknown norm 'Linv'; did you mean 'Linf'?"
    """
    names = sorted(known)
    near = get_close_matches(received, names, n=3, cutoff=0.6)
    if near:
        advice = "did you mean " + " or ".join(repr(name) for name in near) + "?"
    elif len(names) <= 12:
        advice = "expected one of " + ", ".join(names)
    else:
        advice = f"{len(names)} names are known"
    return UnknownName(f"unknown {kind} {received!r}; {advice}" + (f"\n{hint}" if hint else ""))
