"""One server process: load the models, listen, and shut down once all accepted requests are answered."""

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
from robust_export.serving import grpc_service
from robust_export.serving.connection_limits import limited_connection
from robust_export.serving.logs import configure_logging
from robust_export.serving.metrics import Metrics
from robust_export.serving.model_loading import LoadedModel, load_models
from robust_export.serving.rest import application
from robust_export.serving.service import InferenceService, log
from robust_export.serving.settings import OnReady, Settings
from robust_export.serving.sockets import host_and_port, raise_open_files_limit

EXTRA_FILES = 256  # open files besides the connections of REST and as many of gRPC


class _RestServer(uvicorn.Server):
    """uvicorn with an event that is set when it listens, and without its own signal handlers."""

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
    """Serve until SIGTERM or Ctrl-C; a second Ctrl-C drops unanswered requests.

    Args:
        listener: for REST.
        grpc_address: host and port.
        parent: in a worker, a file descriptor that becomes readable when the supervisor ends; the worker then
            shuts down.

    Raises:
        RobustExportError: if a model cannot be loaded, or the process cannot listen.
    """
    configure_logging(settings.log_level)
    needed = 2 * settings.connections + EXTRA_FILES
    if (allowed := raise_open_files_limit(needed)) < needed:
        log.warning(
            f"the system allows {allowed} open files; {settings.connections} REST connections and as many of "
            f"gRPC need {needed}: raise the hard limit (ulimit -Hn)"
        )
    models = load_models(settings)
    asyncio.run(_serve(settings, models, listener, grpc_address, on_ready, parent))


async def _serve(
    settings: Settings, models: Mapping[str, LoadedModel], listener: socket.socket,
    grpc_address: tuple[str, int], on_ready: OnReady, parent: int | None,
) -> None:  # fmt: skip
    service = InferenceService(models, settings, Metrics())
    rest_server = _RestServer(uvicorn_config(settings, service))
    stop, stop_now = _stop_events(parent)
    scheme = "https" if settings.tls else "http"
    facts: dict[str, Any] = {
        "models": [model.facts() for model in models.values()],
        "rest": f"{scheme}://{host_and_port(listener.getsockname()[:2])}", "grpc": None,
    }  # fmt: skip
    grpc_server = None
    if settings.grpc:
        address = host_and_port(grpc_address)
        grpc_server, port = await grpc_service.start(service, address, shared=parent is not None)
        facts["grpc"] = host_and_port((grpc_address[0], port))
    rest_task = asyncio.create_task(rest_server.serve([listener]))
    await rest_server.listening.wait()
    on_ready(facts)
    await stop.wait()
    log.info("shutting down", extra={"facts": {"buffered_bytes": service.buffered_bytes}})
    service.shutting_down = rest_server.should_exit = True
    forced = asyncio.create_task(_force_exit(stop_now, rest_server, grpc_server))
    if grpc_server is not None:
        await grpc_server.stop(settings.timeout)
    await rest_task
    forced.cancel()
    await service.close()


async def _force_exit(
    stop_now: asyncio.Event, rest_server: _RestServer, grpc_server: grpc.aio.Server | None
) -> None:
    """Drop all unanswered requests once `stop_now` is set."""
    await stop_now.wait()
    rest_server.force_exit = True
    if grpc_server is not None:
        await grpc_server.stop(None)


def uvicorn_config(settings: Settings, service: InferenceService) -> uvicorn.Config:
    """Return the configuration of the REST server.

    Raises:
        InvalidValue: if the certificate or its key cannot be loaded.
    """
    config = uvicorn.Config(
        application(service), http=limited_connection(settings.timeout, settings.connections), ws="none",
        lifespan="off", log_config=None, access_log=False, proxy_headers=False, server_header=False,
        timeout_graceful_shutdown=round(settings.timeout) + 1, backlog=1024,
        ssl_certfile=settings.tls_cert or None, ssl_keyfile=settings.tls_key or None,
    )  # fmt: skip
    try:
        config.load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidValue(
            f"{settings.tls_cert} and {settings.tls_key} are not a certificate and its key: {reason(error)}"
        ) from error
    return config


def _stop_events(parent: int | None) -> tuple[asyncio.Event, asyncio.Event]:
    """Return two events: set when the process must shut down, and when it must not wait for requests."""
    stop, stop_now, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    def on_interrupt() -> None:
        if stop.is_set():
            stop_now.set()
        stop.set()

    def on_supervisor_end(descriptor: int) -> None:
        loop.remove_reader(descriptor)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if parent is None:
        loop.add_signal_handler(signal.SIGINT, on_interrupt)
    else:
        loop.add_reader(parent, on_supervisor_end, parent)
    return stop, stop_now
