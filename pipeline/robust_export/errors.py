"""Every failure that a user can cause or mend, as one small family of exceptions.

The message of each says what was received, what was expected and what to do; the command line
prints it and exits with `exit_code`. Library code raises these and never exits.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RobustExportError(Exception):
    """Base class: anything that robust-export reports to its user without a traceback."""

    exit_code = 1
    reported_elsewhere = False  # whether another process of the same work reports it


class UnknownName(RobustExportError):
    """A name (model, data set, option, recipe key) that robust-export does not know."""

    exit_code = 2


class InvalidValue(RobustExportError):
    """A value of the wrong type or out of its range."""

    exit_code = 2


class UnsupportedModel(RobustExportError):
    """A network that cannot be built, converted or exported as asked."""


class SpartaMismatch(RobustExportError):
    """A Sparta function whose widths or kernel do not fit the network it is loaded into."""


class DataError(RobustExportError):
    """A data set that is missing, empty or damaged."""


class BundleError(RobustExportError):
    """A bundle that is missing, half-written, altered or of another schema."""


class ArtifactError(RobustExportError):
    """An exported file that is damaged, or is not the artifact of the bundle it is judged with."""


class BuildError(RobustExportError):
    """Kernels that cannot be built or loaded: a compiler, header or library that is missing or fails."""


class TrainingError(RobustExportError):
    """A training run that cannot start, go on or be resumed."""


class TrainingStopped(TrainingError):
    """A training run that was asked to stop, and saved its state."""


def reason(error: BaseException) -> str:
    r"""Return the first line of what an exception says, or its type where it says nothing.

    >>> reason(TimeoutError()), reason(ValueError("no\nstack trace"))
    ('TimeoutError', 'no')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unknown(kind: str, received: str, known: Iterable[str], hint: str = "") -> UnknownName:
    """Return the error for an unknown name, naming the nearest known ones.

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
        advice = f"there are {len(names)} known ones"
    return UnknownName(f"unknown {kind} {received!r}; {advice}" + (f"\n{hint}" if hint else ""))
