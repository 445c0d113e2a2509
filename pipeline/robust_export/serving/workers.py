"""Several processes that serve on the same ports, and the one that watches over them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from tempfile import TemporaryDirectory
from typing import Any

from robust_export.errors import RobustExportError
from robust_export.serving.logs import LOGGER, set_up
from robust_export.serving.settings import COUNTS, OnReady, Settings
from robust_export.serving.sockets import listen, reserve, resolve

STEADY = 10.0  # s that a worker lives which did not fail at its start
PAUSES = (0.1, 30.0)  # s between two starts of a worker that fails at once: the first, and the longest

log = logging.getLogger(LOGGER)


def serve(settings: Settings, on_ready: OnReady) -> None:
    """Serve until SIGTERM or Ctrl-C, in this process or in `workers` others.

    Raises:
        RobustExportError: if a model cannot be loaded, or a port cannot be had.
    """
    with listen(settings.host, settings.port, "--port") as listener:
        os.environ.pop(COUNTS, None)  # of another's, at which prometheus_client looks when it is imported
        if settings.workers == 1:
            from robust_export.serving.server import run

            return run(settings, listener, resolve(settings.host, settings.grpc_port)[1], on_ready)
        with _grpc_port(settings) as address, TemporaryDirectory() as counts:
            os.environ[COUNTS] = counts
            try:
                _Supervisor(settings, listener, address, on_ready).run()
            finally:
                del os.environ[COUNTS]
    return None


@contextmanager
def _grpc_port(settings: Settings) -> Iterator[tuple[str, int]]:
    """Give the address that all workers take for gRPC."""
    if not settings.grpc:
        yield resolve(settings.host, 0)[1]
        return
    with reserve(settings.host, settings.grpc_port, "--grpc-port") as held:
        yield held.getsockname()[:2]


@dataclass
class _Worker:
    """A place for a process; when one ends, another takes it."""

    process: SpawnProcess | None = None
    pipe: Connection | None = None  # of which the process has the other end
    started: float = 0.0  # s, of the monotonic clock
    pause: float = PAUSES[0]
    again: float = field(default=0.0)  # when to start the next one


class _Supervisor:
    """Starts the workers, starts again what ends, and ends them all."""

    def __init__(
        self, settings: Settings, listener: socket.socket, grpc_address: tuple[str, int], on_ready: OnReady
    ) -> None:
        self._settings, self._on_ready = settings, on_ready
        self._ends = listener, grpc_address
        self._workers = [_Worker() for _ in range(settings.workers)]
        self._waited = set(range(settings.workers))  # for their first ready
        self._asked = 0  # how often to end

    def run(self) -> None:
        set_up(self._settings.log_level)
        with _signals() as asked:
            try:
                for worker in self._workers:
                    self._start(worker)
                while not self._asked:
                    self._watch(asked)
                self._end(asked)
            finally:
                self._kill()

    def _start(self, worker: _Worker) -> None:
        context = get_context("spawn")
        worker.pipe, theirs = context.Pipe()
        worker.process = context.Process(
            target=_work, args=(self._settings, *self._ends, theirs), name="worker"
        )
        worker.process.start()
        theirs.close()
        worker.started = time.monotonic()

    def _watch(self, asked: int) -> None:
        """Wait until something happens, and see to it."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is None and worker.again <= now:
                self._start(worker)
        due = [worker.again - now for worker in self._workers if worker.process is None]
        pipes: dict[Any, int] = {w.pipe: n for n, w in enumerate(self._workers) if w.pipe is not None}
        for ready in wait([asked, *pipes], min(due, default=None)):
            if ready == asked:
                self._asked += len(os.read(asked, 64))
            else:
                self._hear(pipes[ready])

    def _hear(self, number: int) -> None:
        """Read what a worker says: that it is ready, why it failed, or, by silence, that it ended."""
        worker = self._workers[number]
        assert worker.pipe is not None
        try:
            said, what, code = worker.pipe.recv()
        except (EOFError, OSError):
            return self._bury(number)
        if said == "ready":
            if number in self._waited:
                self._waited.discard(number)
                if not self._waited:
                    self._on_ready(what)
        elif self._waited:
            error = RobustExportError(what)
            error.exit_code = code
            raise error
        else:
            log.error("a worker failed", extra={"facts": {"worker": number, "error": what}})
        return None

    def _bury(self, number: int) -> None:
        """Note that a worker ended, and when to start the next one in its place."""
        from prometheus_client.multiprocess import mark_process_dead

        worker = self._workers[number]
        assert worker.process is not None
        assert worker.pipe is not None
        worker.process.join()
        facts = {"worker": number, "pid": worker.process.pid, "exit_code": worker.process.exitcode}
        mark_process_dead(worker.process.pid)  # type: ignore[no-untyped-call]
        if number in self._waited:
            raise RobustExportError(
                f"a worker ended with code {worker.process.exitcode} before it was ready; the log says why"
            )
        now = time.monotonic()
        steady = now - worker.started > STEADY
        worker.pause = PAUSES[0] if steady else min(2 * worker.pause, PAUSES[1])
        worker.again = now if steady else now + worker.pause
        worker.pipe.close()
        worker.process = worker.pipe = None
        log.error("a worker ended; another takes its place", extra={"facts": facts})

    def _end(self, asked: int) -> None:
        """Let the workers finish what they accepted; do not wait if asked to end twice."""
        log.info("ending")
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            process.terminate()
        last = time.monotonic() + self._settings.timeout + 5
        sentinels = {process.sentinel for process in running}
        while sentinels and (left := last - time.monotonic()) > 0:
            for ready in wait([asked, *sentinels], left):
                if ready == asked and os.read(asked, 64).count(b"i"):
                    return
                sentinels.discard(ready)

    def _kill(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()
                worker.process.join()


@contextmanager
def _signals() -> Iterator[int]:
    """Give a file descriptor that has "t" for every SIGTERM and "i" for every Ctrl-C."""
    reader, writer = os.pipe()
    words = {signal.SIGTERM: b"t", signal.SIGINT: b"i"}
    before = {s: signal.signal(s, lambda *_, word=w: os.write(writer, word)) for s, w in words.items()}
    try:
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _work(
    settings: Settings, listener: socket.socket, grpc_address: tuple[str, int], pipe: Connection
) -> None:
    """Be a worker. Ctrl-C in a terminal reaches it too; its supervisor is who ends it."""
    from robust_export.serving.server import run

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run(settings, listener, grpc_address, lambda facts: pipe.send(("ready", facts, 0)), pipe.fileno())
    except RobustExportError as error:
        pipe.send(("failed", str(error), error.exit_code))
        sys.exit(error.exit_code)
