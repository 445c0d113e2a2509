"""Servers for tests: processes, threads of this process, and applications without a network."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import uvicorn

from robust_export.serving.connection_limits import limited_connection
from robust_export.serving.metrics import Metrics
from robust_export.serving.model_loading import load_models
from robust_export.serving.rest import application
from robust_export.serving.service import InferenceService
from robust_export.serving.settings import Settings

TIMEOUT = 60  # s; reached only if something hangs


class Log:
    """Standard error of a server and its workers: JSON lines, read by a thread as they arrive."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.text = ""
        self._new_line = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            with self._new_line:
                self.text += line.decode()
                self._new_line.notify_all()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def wait_for(self, event: str, count: int = 1, **facts: Any) -> list[dict[str, Any]]:
        """Block until `count` lines have this event and these facts; return them."""

        def matching() -> list[dict[str, Any]]:
            wanted = {"event": event, **facts}
            return [line for line in self.lines() if wanted.items() <= line.items()]

        with self._new_line:
            assert self._new_line.wait_for(lambda: len(matching()) >= count, TIMEOUT), self.text
            return matching()

    def wait_for_end(self) -> None:
        """Block until every process that writes to the log has ended."""
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()


@dataclass
class Server:
    """A server process, and what it printed when it was ready."""

    process: subprocess.Popen[bytes]
    facts: dict[str, Any]
    log: Log

    @property
    def rest(self) -> str:
        return str(self.facts["rest"])

    @property
    def grpc(self) -> str:
        return str(self.facts["grpc"])

    def terminate(self) -> int:
        """Send SIGTERM; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT)

    def metric(self, name: str, **labels: str) -> float:
        """Return a value of /metrics, summed over the labels that are not given."""
        text = httpx.get(f"{self.rest}/metrics", timeout=TIMEOUT).text
        total = 0.0
        for line in text.splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(f'{k}="{v}"' in head for k, v in labels.items()):
                total += float(value)
        return total


def command(*arguments: str | Path) -> list[str]:
    words = ["serve", "--json", "--port", "0", "--grpc-port", "0", *arguments]
    return [sys.executable, "-m", "robust_export", *map(str, words)]


@contextmanager
def start(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Yield a server process that listens on free ports."""
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(env or {})}
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        log = Log(process.stderr)
        try:
            line = process.stdout.readline()
            assert line, log.text
            yield Server(process, json.loads(line), log)
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(TIMEOUT)
            finally:
                process.kill()
                log.wait_for_end()


@contextmanager
def serve_in_thread(
    app: Any, timeout: float = TIMEOUT, max_connections: int = 20
) -> Iterator[tuple[str, int]]:
    """Serve an ASGI application behind `limited_connection` in a thread; yield its address."""
    config = uvicorn.Config(
        app, http=limited_connection(timeout, max_connections), ws="none", lifespan="off", log_config=None,
        access_log=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = server.force_exit = True
            thread.join(TIMEOUT)


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class App:
    """The REST application in this process, called without a network."""

    def __init__(
        self, *bundles: Path, wrap: Callable[[Any], Any] = lambda model: model, **changes: Any
    ) -> None:
        self.settings = Settings(models=tuple(map(str, bundles)), **changes)
        models = {name: wrap(model) for name, model in load_models(self.settings).items()}
        self.service = InferenceService(models, self.settings, Metrics())
        self.app = application(self.service)
        self.loop = asyncio.new_event_loop()

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Response:
        return self.loop.run_until_complete(self.send(method, path, body, headers or {}))

    async def send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Response:
        pieces = [body[i : i + 65536] for i in range(0, len(body), 65536)] or [b""]
        messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        messages[-1]["more_body"] = False
        sent: list[dict[str, Any]] = []

        async def receive() -> Any:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(http_scope(method, path, headers), receive, send)
        start, *rest = sent
        content = b"".join(message.get("body", b"") for message in rest)
        response_headers = {key.decode().lower(): value.decode() for key, value in start["headers"]}
        return Response(start["status"], response_headers, content)

    def close(self) -> None:
        self.loop.run_until_complete(self.service.close())
        self.loop.close()


def http_scope(method: str, path: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the ASGI scope of a request."""
    pairs = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in (headers or {}).items()]
    return {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": pairs, "scheme": "http", "http_version": "1.1", "root_path": "",
        "server": ("test", 80), "client": ("test", 1), "asgi": {"version": "3.0"},
    }  # fmt: skip
