"""Unread responses and pipelined requests, with a test application behind the server's connections."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.serving.raw_http import connect, read_all
from tests.serving.servers import TIMEOUT, serve_in_thread

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
GET_LARGE = GET.replace(b"/", b"/large", 1)
GET_LATE = GET.replace(b"/", b"/late", 1)
LAST_GET = GET[:-2] + b"Connection: close\r\n\r\n"
LARGE = 20 << 20  # bytes, more than the kernel buffers
Send = Callable[[Any], Awaitable[None]]


class App:
    """Responds with the path; /large with more than fits the socket buffers, /late once `release` is set."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.entered, self.release, self.left = (threading.Event() for _ in range(3))
        self.address = ("", 0)

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        self.paths.append(scope["path"])
        try:
            await self._respond(scope, receive, send)
        finally:
            self.left.set()

    async def _respond(self, scope: Any, receive: Any, send: Send) -> None:
        body = scope["path"].encode()
        if scope["path"] == "/large":
            body = bytes(LARGE)
        if scope["path"] == "/late":
            self.entered.set()
            await asyncio.to_thread(self.release.wait, TIMEOUT)
            self.left.clear()
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def connect(self) -> socket.socket:
        return connect(self.address)


@contextmanager
def serve(timeout: float) -> Iterator[App]:
    app = App()
    with serve_in_thread(app, timeout) as app.address:
        try:
            yield app
        finally:
            app.release.set()


@pytest.fixture(scope="module")
def short_timeout() -> Iterator[App]:
    with serve(timeout=0.5) as app:
        yield app


@pytest.fixture
def own_short_timeout() -> Iterator[App]:
    with serve(timeout=0.5) as app:
        yield app


@pytest.fixture
def long_timeout() -> Iterator[App]:
    with serve(timeout=TIMEOUT) as app:
        yield app


def is_reset(connection: socket.socket) -> bool:
    """Wait until the server resets the connection, without reading from it."""
    poll = select.poll()
    poll.register(connection, 0)
    return any(event & select.POLLERR for _, event in poll.poll(TIMEOUT * 1000))


@pytest.mark.parametrize("then", [b"", GET, GET[:9], b"\r\n", b"no HTTP\r\n\r\n"])
def test_unread_response_resets_the_connection(short_timeout: App, then: bytes) -> None:
    with short_timeout.connect() as connection:
        connection.sendall(GET_LARGE)
        assert connection.recv(1, socket.MSG_PEEK)  # the response has begun
        connection.sendall(then)
        assert is_reset(connection)


def test_slow_second_request_gets_408(short_timeout: App) -> None:
    with short_timeout.connect() as connection:
        connection.sendall(GET_LARGE + GET[:9])
        content = read_all(connection)
    assert content.startswith(b"HTTP/1.1 200")
    assert content[LARGE:].partition(b"HTTP/1.1 ")[2].startswith(b"408")


@pytest.mark.parametrize(
    "then",
    [
        b"no HTTP\r\n\r\n",
        GET[:9],
        b"GET http://[ HTTP/1.1\r\n\r\n",
        GET[:-2] + b"X: " + b"y" * 1_000_000,
        b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_error_is_not_sent_before_an_earlier_response(
    own_short_timeout: App, then: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    app = own_short_timeout
    with app.connect() as connection:
        connection.sendall(GET_LATE)
        assert app.entered.wait(TIMEOUT)
        connection.sendall(then)
        assert read_all(connection) == b""
    app.release.set()
    with app.connect() as another:  # the late response must not disturb it
        assert app.left.wait(TIMEOUT)
        another.sendall(LAST_GET)
        assert read_all(another).startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.exc_info]


def test_too_many_pipelined_requests_close_the_connection(long_timeout: App) -> None:
    with long_timeout.connect() as connection:
        connection.sendall(GET_LATE + GET * 17)
        assert read_all(connection) == b""
    assert long_timeout.entered.wait(TIMEOUT)  # may be after the connection's end
    assert long_timeout.paths == ["/late"]
    long_timeout.release.set()
    with long_timeout.connect() as connection:
        connection.sendall(GET_LATE + GET * 15 + LAST_GET)
        assert read_all(connection).count(b"HTTP/1.1 200") == 17
    assert len(long_timeout.paths) == 18


def test_invalid_url_after_a_response_gets_400(long_timeout: App) -> None:
    with long_timeout.connect() as connection:
        connection.sendall(GET)
        assert connection.recv(1 << 10).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET http://[ HTTP/1.1\r\n\r\n")
        assert read_all(connection).removeprefix(b"/").startswith(b"HTTP/1.1 400")
