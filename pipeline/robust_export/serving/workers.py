"""Several worker processes on the same ports, and the supervisor that restarts them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from tempfile import TemporaryDirectory
from typing import Any

from robust_export.errors import RobustExportError
from robust_export.serving.logs import LOGGER, configure_logging
from robust_export.serving.settings import METRICS_FOLDER_VARIABLE, OnReady, Settings
from robust_export.serving.sockets import listen, reserve_port, resolve

STABLE_AFTER = 10.0  # s; a worker that ends earlier counts as failed at its start
MIN_DELAY, MAX_DELAY = 0.1, 30.0  # s before a failed worker is started again; doubles with each failure

log = logging.getLogger(LOGGER)


def serve(settings: Settings, on_ready: OnReady) -> None:
    """Serve until SIGTERM or Ctrl-C, in this process or in `settings.workers` worker processes.

    Raises:
        RobustExportError: if a model cannot be loaded, or a port cannot be used.
    """
    with listen(settings.host, settings.port, "--port") as listener:
        # Another program's metrics folder must not be shared; prometheus_client looks when it is imported.
        os.environ.pop(METRICS_FOLDER_VARIABLE, None)
        if settings.workers == 1:
            from robust_export.serving.server import run

            return run(settings, listener, resolve(settings.host, settings.grpc_port)[1], on_ready)
        with _shared_grpc_address(settings) as address, TemporaryDirectory() as metrics_folder:
            os.environ[METRICS_FOLDER_VARIABLE] = metrics_folder
            try:
                _Supervisor(settings, listener, address, on_ready).run()
            finally:
                del os.environ[METRICS_FOLDER_VARIABLE]
    return None


@contextmanager
def _shared_grpc_address(settings: Settings) -> Iterator[tuple[str, int]]:
    """Yield the gRPC address that all workers listen on."""
    if not settings.grpc:
        yield resolve(settings.host, 0)[1]
        return
    with reserve_port(settings.host, settings.grpc_port, "--grpc-port") as reserved:
        yield reserved.getsockname()[:2]


@dataclass
class _Worker:
    """A worker slot: its process if one runs, and when to start the next."""

    process: SpawnProcess | None = None
    pipe: Connection | None = None  # our end; the process has the other
    started: float = 0.0  # s, monotonic clock
    delay: float = MIN_DELAY  # s
    restart_at: float = 0.0  # s, monotonic clock


class _Supervisor:
    """Starts the workers, restarts those that end, and stops them all."""

    def __init__(
        self, settings: Settings, listener: socket.socket, grpc_address: tuple[str, int], on_ready: OnReady
    ) -> None:
        self._settings, self._on_ready = settings, on_ready
        self._sockets = listener, grpc_address
        self._workers = [_Worker() for _ in range(settings.workers)]
        self._starting = set(range(settings.workers))  # not ready for the first time yet
        self._stop_signals = 0

    def run(self) -> None:
        configure_logging(self._settings.log_level)
        with _signal_pipe() as signals:
            try:
                for number in range(len(self._workers)):
                    self._start(number)
                while not self._stop_signals:
                    self._wait_for_event(signals)
                self._stop(signals)
            finally:
                self._kill()

    def _start(self, number: int) -> None:
        worker, context = self._workers[number], get_context("spawn")
        worker.pipe, child_end = context.Pipe()
        worker.process = context.Process(
            target=_run_worker, args=(self._settings, *self._sockets, child_end), name="worker"
        )
        worker.process.start()
        child_end.close()
        worker.started = time.monotonic()

    def _wait_for_event(self, signals: int) -> None:
        """Start due workers, then wait for a signal, a worker's message or the next restart."""
        now = time.monotonic()
        for number, worker in enumerate(self._workers):
            if worker.process is None and worker.restart_at <= now:
                self._start(number)
        delays = [worker.restart_at - now for worker in self._workers if worker.process is None]
        pipes: dict[Any, int] = {w.pipe: n for n, w in enumerate(self._workers) if w.pipe is not None}
        for ready in wait([signals, *pipes], min(delays, default=None)):
            if ready == signals:
                self._stop_signals += len(os.read(signals, 64))
            else:
                self._read_message(pipes[ready])

    def _read_message(self, number: int) -> None:
        """Handle a worker's message ("ready" or "failed"), or its end if the pipe is closed."""
        worker = self._workers[number]
        assert worker.pipe is not None
        assert worker.process is not None
        try:
            kind, content, exit_code = worker.pipe.recv()
        except (EOFError, OSError):
            return self._schedule_restart(number)
        if kind == "ready":
            log.info("worker ready", extra={"facts": {"worker": number, "pid": worker.process.pid}})
            if number in self._starting:
                self._starting.discard(number)
                if not self._starting:
                    self._on_ready(content)
        elif self._starting:
            error = RobustExportError(content)
            error.exit_code = exit_code
            raise error
        else:
            log.error("worker failed", extra={"facts": {"worker": number, "error": content}})
        return None

    def _schedule_restart(self, number: int) -> None:
        """Clean up after a worker that ended, and set when to start the next one."""
        from prometheus_client.multiprocess import mark_process_dead

        worker = self._workers[number]
        assert worker.process is not None
        assert worker.pipe is not None
        worker.process.join()
        facts = {"worker": number, "pid": worker.process.pid, "exit_code": worker.process.exitcode}
        mark_process_dead(worker.process.pid)  # type: ignore[no-untyped-call]
        if number in self._starting:
            raise RobustExportError(
                f"a worker ended with code {worker.process.exitcode} before it was ready; see the log"
            )
        now = time.monotonic()
        stable = now - worker.started > STABLE_AFTER
        worker.delay = MIN_DELAY if stable else min(2 * worker.delay, MAX_DELAY)
        worker.restart_at = now if stable else now + worker.delay
        worker.pipe.close()
        worker.process = worker.pipe = None
        log.error("worker ended; restarting it", extra={"facts": facts})

    def _stop(self, signals: int) -> None:
        """Let the workers answer what they accepted; return early on a further Ctrl-C."""
        log.info("shutting down")
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._settings.timeout + 5
        sentinels = {process.sentinel for process in running}
        while sentinels and (remaining := deadline - time.monotonic()) > 0:
            for ready in wait([signals, *sentinels], remaining):
                if ready == signals and os.read(signals, 64).count(b"i"):
                    return
                sentinels.discard(ready)

    def _kill(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()
                worker.process.join()


@contextmanager
def _signal_pipe() -> Iterator[int]:
    """Yield a file descriptor that receives "t" for each SIGTERM and "i" for each Ctrl-C."""
    reader, writer = os.pipe()
    letters = {signal.SIGTERM: b"t", signal.SIGINT: b"i"}
    previous = {
        number: signal.signal(number, lambda *_, letter=letter: os.write(writer, letter))
        for number, letter in letters.items()
    }
    try:
        yield reader
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _run_worker(
    settings: Settings, listener: socket.socket, grpc_address: tuple[str, int], pipe: Connection
) -> None:
    """Run a worker process. A terminal sends Ctrl-C to it too; only the supervisor stops it."""
    from robust_export.serving.server import run

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run(settings, listener, grpc_address, lambda facts: pipe.send(("ready", facts, 0)), pipe.fileno())
    except RobustExportError as error:
        pipe.send(("failed", str(error), error.exit_code))
        sys.exit(error.exit_code)
