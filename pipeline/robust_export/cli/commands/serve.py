"""robust-export serve: serve bundles over HTTP and gRPC."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from robust_export.cli.console import Console
from robust_export.cli.options import COUNT, NATURAL, POSITIVE, json_option, precision_option
from robust_export.runtimes.registry import RUNTIMES

API_KEY_VARIABLE = "ROBUST_EXPORT_API_KEY"
PORT = click.IntRange(0, 65535)


@click.command()
@click.option(
    "--model", "models", multiple=True, required=True, metavar="NAME|PATH",
    help="A bundle: its name under exported/, or its path; may be repeated.",
)  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=PORT, default=8000, show_default=True, metavar="N", help="Port of REST; 0 uses a free one."
)
@click.option(
    "--grpc-port", type=PORT, default=8001, show_default=True, metavar="N",
    help="Port of gRPC; 0 uses a free one.",
)  # fmt: skip
@click.option("--no-grpc", is_flag=True, help="Serve REST only.")
@click.option(
    "--runtime", type=click.Choice(("auto", *RUNTIMES)), default="auto", show_default=True,
    help="Runtime of the models; auto: a TensorRT engine if the bundle has one for this GPU, otherwise ONNX "
    "Runtime.",
)  # fmt: skip
@precision_option("Which of a bundle's files to serve.")
@click.option(
    "--workers", type=COUNT, default=1, show_default=True, metavar="N", help="Number of server processes."
)
@click.option(
    "--threads", type=NATURAL, default=0, metavar="N", show_default="the cores divided by --workers",
    help="CPU threads per inference.",
)  # fmt: skip
@click.option(
    "--max-batch", type=COUNT, default=32, show_default=True, metavar="N",
    help="Largest batch, in images, that requests are combined into.",
)  # fmt: skip
@click.option(
    "--max-delay", type=click.FloatRange(0, 1000), default=2, show_default=True, metavar="MS",
    help="Milliseconds that a request waits for others to join its batch.",
)  # fmt: skip
@click.option(
    "--queue", type=COUNT, default=128, show_default=True, metavar="N",
    help="Unanswered requests per model and worker; further ones get 429.",
)  # fmt: skip
@click.option(
    "--max-body", type=click.IntRange(1, 1024), default=16, show_default=True, metavar="MIB",
    help="Largest request, in MiB; larger ones get 413.",
)  # fmt: skip
@click.option(
    "--connections", type=COUNT, default=1024, show_default=True, metavar="N",
    help="Open REST connections per worker.",
)  # fmt: skip
@click.option(
    "--timeout", type=POSITIVE, default=30, show_default=True, metavar="S",
    help="Seconds allowed to receive a request, to compute its answer, and to send it.",
)  # fmt: skip
@click.option("--tls-cert", default="", metavar="FILE", help="PEM certificate; turns on TLS.")
@click.option("--tls-key", default="", metavar="FILE", help="PEM private key of the certificate.")
@click.option(
    "--log-level", type=click.Choice(["info", "warning", "error"]), default="info", show_default=True,
    help="Level of the log on standard error; info logs each request.",
)  # fmt: skip
@json_option
def serve(as_json: bool, no_grpc: bool, **options: Any) -> None:
    """Serve bundles over REST and gRPC, with a web page.

    The protocol is Open Inference (V2), as in KServe and Triton; the page is at /. Stops on SIGTERM or
    Ctrl-C, after answering the requests that it has accepted. If the environment variable
    ROBUST_EXPORT_API_KEY is set, clients must send it as a bearer token.
    """
    from robust_export.recipe.recipe_file import dataclass_from_table
    from robust_export.serving.settings import Settings
    from robust_export.serving.sockets import is_local
    from robust_export.serving.workers import serve as run_server

    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    table = {**options, "grpc": not no_grpc, "api_key": key}
    settings = dataclass_from_table(Settings, table, "serve options")
    console = Console(as_json)
    if not is_local(settings.host) and not (key and settings.tls):
        missing = " and ".join(["TLS"] * (not settings.tls) + ["an API key"] * (not key))
        console.print_status(f"warning: other machines can reach {settings.host}, without {missing}")

    def print_ready(facts: dict[str, Any]) -> None:
        names = ", ".join(model["name"] for model in facts["models"])
        grpc = f" and {facts['grpc']} (gRPC)" if facts["grpc"] else ""
        click.echo(json.dumps(facts) if as_json else f"serving {names} on {facts['rest']}{grpc}")

    run_server(settings, print_ready)
