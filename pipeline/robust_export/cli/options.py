"""Options that several commands have, and what they share in reading options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from robust_export.errors import InvalidValue
from robust_export.recipe.schema import Precision

Decorated = Callable[[Callable[..., Any]], Callable[..., Any]]


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json to a command."""
    text = "Print one JSON object on standard output, and nothing else there."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def model_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --model, which names a bundle, to a command."""
    text = "A bundle under exported/, or the path of one."
    return click.option("--model", required=True, metavar="NAME|PATH", help=text)(command)


def precision_option(text: str) -> Decorated:
    """Add --precision, fp32 by default, to a command."""
    precisions = click.Choice(get_args(Precision))
    return click.option("--precision", type=precisions, default="fp32", show_default=True, help=text)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given."""
    return {key: value for key, value in options.items() if value is not None}


def words(text: str) -> list[str]:
    """Return the words of "a, b"."""
    return [word.strip() for word in text.split(",")]


def counts(option: str, text: str) -> list[int]:
    """Return the whole numbers of "1,32"."""
    try:
        return [int(word) for word in words(text)]
    except ValueError:
        raise InvalidValue(f"{option} is {text!r}; expected whole numbers with commas between") from None


def bundle_name(path: Path) -> str:
    """Return how --model names the bundle in `path`."""
    from robust_export.bundle import HOME

    return path.name if path.parent == HOME else str(path)
