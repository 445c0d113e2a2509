"""The life of one process that serves: it loads, listens, and ends when all that it accepted is answered."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc.aio
import uvicorn

from robust_export.errors import InvalidValue, reason
from robust_export.serving.connection_limits import connections
from robust_export.serving.logs import set_up
from robust_export.serving.metrics import Metrics
from robust_export.serving.model_loading import Model, load_models
from robust_export.serving.rest import application
from robust_export.serving.service import Service, log
from robust_export.serving.settings import OnReady, Settings
from robust_export.serving.sockets import allow_files, shown

SPARE_FILES = 256  # open beside connections of REST and as many of gRPC


class _Rest(uvicorn.Server):
    """uvicorn, whose signals are handled here, and which says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(
    settings: Settings, listener: socket.socket, grpc_address: tuple[str, int], on_ready: OnReady,
    parent: int | None = None,
) -> None:  # fmt: skip
    """Serve until SIGTERM or Ctrl-C; a second Ctrl-C does not wait for what is unanswered.

    Args:
        listener: for REST.
        grpc_address: host and port.
        parent: in a worker, a file descriptor that ends when its supervisor does; the worker then ends too.

    Raises:
        RobustExportError: if a model cannot be loaded, or it cannot listen.
    """
    set_up(settings.log_level)
    wanted = 2 * settings.connections + SPARE_FILES
    if (allowed := allow_files(wanted)) < wanted:
        log.warning(
            f"the system allows {allowed} open files; for {settings.connections} connections of REST, "
            f"and those of gRPC, expected {wanted}: raise the hard limit (ulimit -Hn)"
        )
    models = load_models(settings)
    asyncio.run(_serve(settings, models, listener, grpc_address, on_ready, parent))


async def _serve(
    settings: Settings, models: Mapping[str, Model], listener: socket.socket, grpc_address: tuple[str, int],
    on_ready: OnReady, parent: int | None,
) -> None:  # fmt: skip
    service = Service(models, settings, Metrics())
    rest = _Rest(_config(settings, service))
    stop, hurry = _stopping(parent)
    scheme = "https" if settings.tls else "http"
    facts: dict[str, Any] = {
        "models": [model.facts() for model in models.values()],
        "rest": f"{scheme}://{shown(listener.getsockname()[:2])}", "grpc": None,
    }  # fmt: skip
    calls = None
    if settings.grpc:
        calls, port = await grpc_service.start(service, shown(grpc_address), shared=parent is not None)
        facts["grpc"] = shown((grpc_address[0], port))
    serving = asyncio.create_task(rest.serve([listener]))
    await rest.listening.wait()
    on_ready(facts)
    await stop.wait()
    log.info("ending", extra={"facts": {"held_bytes": service.held}})
    service.ending = rest.should_exit = True
    hurried = asyncio.create_task(_hurried(hurry, rest, calls))
    if calls is not None:
        await calls.stop(settings.timeout)
    await serving
    hurried.cancel()
    await service.close()


async def _hurried(hurry: asyncio.Event, rest: _Rest, calls: grpc.aio.Server | None) -> None:
    """Once asked to, wait for nothing that is unanswered."""
    await hurry.wait()
    rest.force_exit = True
    if calls is not None:
        await calls.stop(None)


def _config(settings: Settings, service: Service) -> uvicorn.Config:
    config = uvicorn.Config(
        application(service), http=connections(settings.timeout, settings.connections), ws="none",
        lifespan="off", log_config=None, access_log=False, proxy_headers=False, server_header=False,
        timeout_graceful_shutdown=round(settings.timeout) + 1, backlog=1024,
        ssl_certfile=settings.tls_cert or None, ssl_keyfile=settings.tls_key or None,
    )  # fmt: skip
    try:
        config.load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        pair = f"{settings.tls_cert} and {settings.tls_key}"
        raise InvalidValue(f"{pair} are no certificate and its key: {reason(error)}") from error
    return config


def _stopping(parent: int | None) -> tuple[asyncio.Event, asyncio.Event]:
    """Return what is set when the process is asked to end, and what when it is asked not to wait."""
    stop, hurry, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    def interrupted() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    def orphaned(descriptor: int) -> None:
        loop.remove_reader(descriptor)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if parent is None:
        loop.add_signal_handler(signal.SIGINT, interrupted)
    else:
        loop.add_reader(parent, orphaned, parent)
    return stop, hurry
