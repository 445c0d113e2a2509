"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from robust_export.errors import InvalidValue
from robust_export.recipe.schema import Precision

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

PATH = click.Path(path_type=Path)
NATURAL = click.IntRange(min=0)
COUNT = click.IntRange(min=1)
POSITIVE = click.FloatRange(min=0, min_open=True)

COMPUTE_CAPABILITY = re.compile(r"(?:sm_?)?(\d+)\.?(\d)", re.IGNORECASE)

json_option = click.option(
    "--json", "as_json", is_flag=True,
    help="Print the result as one JSON object on standard output, and nothing else there.",
)  # fmt: skip

model_option = click.option(
    "--model", required=True, metavar="NAME|PATH",
    help="The bundle: its name under exported/, or its path.",
)  # fmt: skip


def precision_option(text: str) -> Decorator:
    """Return the option --precision, fp32 by default."""
    precisions = click.Choice(get_args(Precision))
    return click.option("--precision", type=precisions, default="fp32", show_default=True, help=text)


def data_dir_option(default: str) -> Decorator:
    """Return the option --data-dir, with a description of its default."""
    text = "Folder with the data sets in torchvision's layout."
    return click.option("--data-dir", metavar="DIR", show_default=default, help=text)


def device_option(purpose: str) -> Decorator:
    """Return the option --device, "auto" by default."""
    text = f"{purpose}: auto (a GPU if there is one), cpu, cuda, cuda:N or mps."
    return click.option("--device", default="auto", show_default=True, metavar="DEVICE", help=text)


def drop_none(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options whose value is not None."""
    return {key: value for key, value in options.items() if value is not None}


def split_commas(text: str) -> list[str]:
    """Split "a, b" into ["a", "b"]."""
    return [part.strip() for part in text.split(",")]


def parse_integers(option: str, text: str) -> list[int]:
    """Parse "1,32" into [1, 32]; raise InvalidValue naming the option otherwise."""
    try:
        return [int(part) for part in split_commas(text)]
    except ValueError:
        raise InvalidValue(f"{option} is {text!r}; expected integers separated by commas") from None


def parse_compute_capability(text: str) -> tuple[int, int]:
    """Parse "8.9", "89" or "sm_89" into (8, 9)."""
    match = COMPUTE_CAPABILITY.fullmatch(text.strip())
    if not match:
        raise InvalidValue(f"--compute-capability is {text!r}; expected one such as 8.9")
    return int(match[1]), int(match[2])


def bundle_name(path: Path) -> str:
    """Return the shortest value of --model for the bundle in `path`."""
    from robust_export.bundle import EXPORTED

    return path.name if path.parent == EXPORTED else str(path)


def command_line() -> str:
    """Return the running command with the options given by the user, quoted for a shell."""
    context = click.get_current_context()
    words = ["robust-export", str(context.info_name)]
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params[str(parameter.name)]
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(parameter, click.Option) and parameter.is_flag:
            words.append(parameter.opts[0])
            continue
        for item in value if parameter.multiple else (value,):
            words += [parameter.opts[0], str(item)]
    return shlex.join(words)
