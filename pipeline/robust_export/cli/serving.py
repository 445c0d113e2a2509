"""The command that serves."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from robust_export.cli.base import cli
from robust_export.cli.console import Console
from robust_export.cli.options import json_option, precision_option
from robust_export.runtimes.registry import RUNTIMES

KEY = "ROBUST_EXPORT_API_KEY"  # what clients must send; verify sends it


@cli.command()
@click.option(
    "--model", "models", multiple=True, required=True, metavar="NAME|PATH",
    help="A bundle under exported/, or the path of one; may be repeated.",
)  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=int, default=8000, show_default=True, help="Of REST; 0 takes a free one.")
@click.option("--grpc-port", type=int, default=8001, show_default=True, help="Of gRPC; 0 takes a free one.")
@click.option("--no-grpc", is_flag=True, help="Serve REST alone.")
@click.option(
    "--runtime", type=click.Choice(("auto", *RUNTIMES)), default="auto", show_default=True,
    help="What runs the models.",
)  # fmt: skip
@precision_option("Which of a bundle's files to serve.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes that serve.")
@click.option("--threads", type=int, default=0, help="Of one inference.  [the cores, shared by the workers]")
@click.option("--max-batch", type=int, default=32, show_default=True, help="Images that run as one.")
@click.option(
    "--max-delay", default="2", show_default=True, metavar="MS", help="What a request waits for others."
)
@click.option(
    "--queue", type=int, default=128, show_default=True, help="Requests to a model that may wait; 429 beyond."
)
@click.option("--max-body", type=int, default=16, show_default=True, metavar="MIB", help="Of one request.")
@click.option("--connections", type=int, default=1024, show_default=True, help="Of REST, open at once.")
@click.option(
    "--timeout", default="30", show_default=True, metavar="S", help="To send a request, and to answer one."
)
@click.option("--tls-cert", default="", metavar="FILE", help="A certificate, PEM; serves https.")
@click.option("--tls-key", default="", metavar="FILE", help="Its key, PEM.")
@click.option(
    "--log-level", type=click.Choice(["info", "warning", "error"]), default="info", show_default=True,
    help="Requests are info.",
)  # fmt: skip
@json_option
def serve(as_json: bool, no_grpc: bool, **options: Any) -> None:
    """Serve bundles over the Open Inference (V2) protocol, REST and gRPC.

    Ends on SIGTERM or Ctrl-C, once everything that it accepted is answered.
    """
    from robust_export.recipe.recipe_file import build
    from robust_export.serving.settings import Settings
    from robust_export.serving.sockets import is_local
    from robust_export.serving.workers import serve as run

    key = os.environ.get(KEY, "").strip()
    settings = build(Settings, {**options, "grpc": not no_grpc, "api_key": key}, "serve options")
    console = Console(as_json)
    if not is_local(settings.host) and not (key and settings.tls):
        lacks = " and ".join(["TLS"] * (not settings.tls) + ["an API key"] * (not key))
        console.say(f"{settings.host} can be reached from other machines, without {lacks}")

    def ready(facts: dict[str, Any]) -> None:
        names = ", ".join(model["name"] for model in facts["models"])
        grpc = f" and {facts['grpc']} (gRPC)" if facts["grpc"] else ""
        click.echo(json.dumps(facts) if as_json else f"serving {names} on {facts['rest']}{grpc}")

    run(settings, ready)
