"""robust-export models: the names of the models that can be trained."""

from __future__ import annotations

import json

import click

from robust_export.cli.options import json_option
from robust_export.cli.process import CommandError


@click.command()
@click.argument("filter", default="")
@json_option
def models(filter: str, as_json: bool) -> None:
    """List the model names that `robust-export train --model` accepts.

    With FILTER, list only the names that contain it, such as `robust-export models resnet10`.
    """
    from robust_export.nn.model_names import model_names

    names = [name for name in model_names() if filter in name]
    if not names:
        raise CommandError(f"no model name contains {filter!r}; `robust-export models` lists all names")
    if as_json:
        click.echo(json.dumps({"models": names}))
    else:
        click.echo("\n".join(names))
