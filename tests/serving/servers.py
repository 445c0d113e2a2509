"""Servers for tests: real processes, started by the command line, and applications in this process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from robust_export.serving.metrics import Metrics
from robust_export.serving.model_loading import load_models
from robust_export.serving.rest import application
from robust_export.serving.service import Service
from robust_export.serving.settings import Settings

LIMITED = """
import os, resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), hard))
os.execv(sys.argv[2], sys.argv[2:])
"""
LONG = 60  # s that no test takes unless something hangs


@dataclass
class Server:
    """A server that runs, and what it said when it was ready."""

    process: subprocess.Popen[bytes]
    facts: dict[str, Any]
    log_file: Path

    @property
    def rest(self) -> str:
        return str(self.facts["rest"])

    @property
    def grpc(self) -> str:
        return str(self.facts["grpc"])

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def end(self) -> int:
        """Ask it to end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LONG)

    def metric(self, name: str, **labels: str) -> float:
        """Return a number of /metrics, the sum over all labels that are not given."""
        text = httpx.get(f"{self.rest}/metrics", timeout=LONG).text
        return total(text, name, **labels)


def total(text: str, name: str, **labels: str) -> float:
    found = 0.0
    for line in text.splitlines():
        head, _, value = line.rpartition(" ")
        if head.partition("{")[0] == name and all(f'{k}="{v}"' in head for k, v in labels.items()):
            found += float(value)
    return found


def command(*arguments: str | Path) -> list[str]:
    words = ["serve", "--json", "--port", "0", "--grpc-port", "0", *arguments]
    return [sys.executable, "-m", "robust_export", *map(str, words)]


@contextmanager
def start(
    folder: Path, *arguments: str | Path, env: Mapping[str, str] | None = None, files: int = 0
) -> Iterator[Server]:
    """Give a server whose log is in `folder`.

    Args:
        files: the soft limit of open files that it starts with; 0: ours.
    """
    words, log_file = command(*arguments), folder / "log"
    if files:
        words = [sys.executable, "-c", LIMITED, str(files), *words]
    with (
        log_file.open("wb") as log,
        subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=log, env={**os.environ, **(env or {})}
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log_file.read_text()
            yield Server(process, json.loads(line), log_file)
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(LONG)
            finally:
                process.kill()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class App:
    """The REST application in this process, without a network."""

    def __init__(
        self, *bundles: Path, wrap: Callable[[Any], Any] = lambda model: model, **changes: Any
    ) -> None:
        self.settings = Settings(models=tuple(map(str, bundles)), **changes)
        models = {name: wrap(model) for name, model in load_models(self.settings).items()}
        self.service = Service(models, self.settings, Metrics())
        self.app = application(self.service)
        self.loop = asyncio.new_event_loop()

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        return self.loop.run_until_complete(self.call(method, path, body, headers or {}))

    async def call(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        pieces = [body[i : i + 65536] for i in range(0, len(body), 65536)] or [b""]
        messages = [{"type": "http.request", "body": p, "more_body": True} for p in pieces]
        messages[-1]["more_body"] = False
        sent: list[dict[str, Any]] = []

        async def receive() -> Any:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        pairs = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": pairs, "scheme": "http", "http_version": "1.1", "root_path": "",
            "server": ("test", 80), "client": ("test", 1), "asgi": {"version": "3.0"},
        }  # fmt: skip
        await self.app(scope, receive, send)
        start, *rest = sent
        content = b"".join(message.get("body", b"") for message in rest)
        return Reply(start["status"], {k.decode().lower(): v.decode() for k, v in start["headers"]}, content)

    def close(self) -> None:
        self.loop.run_until_complete(self.service.close())
        self.loop.close()
