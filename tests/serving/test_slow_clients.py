"""Clients that are slow, close the connection, or do not speak HTTP, over TCP connections."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import request_bodies
from tests.serving.bundles import images
from tests.serving.raw_http import Address, OpenRequest, connect, read_all, read_error
from tests.serving.servers import TIMEOUT, App, serve_in_thread

INFER = b"POST /v2/models/net/infer HTTP/1.1\r\nHost: test\r\n"
CHUNKED = INFER + b"Transfer-Encoding: chunked\r\n\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n"


class CountingApp:
    """An ASGI application that counts the requests being handled."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._handled = threading.Condition()
        self._active = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._handled:
            self._active += 1
        try:
            await self._app(scope, receive, send)
        finally:
            with self._handled:
                self._active -= 1
                self._handled.notify_all()

    def wait_until_idle(self) -> None:
        with self._handled:
            assert self._handled.wait_for(lambda: self._active == 0, TIMEOUT)


@pytest.fixture(scope="module")
def app(net: Path) -> Iterator[App]:
    running = App(net, max_body=1)
    yield running
    running.close()


@pytest.fixture(scope="module")
def counting(app: App) -> CountingApp:
    return CountingApp(app.app)


@pytest.fixture(scope="module")
def address(counting: CountingApp) -> Iterator[Address]:
    """A server with a timeout of 0.5 s and at most 20 connections."""
    with serve_in_thread(counting, timeout=0.5, max_connections=20) as listening:
        yield listening


def check_healthy(address: Address) -> None:
    assert OpenRequest(address, images(1)).finish()


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v2/mod",
        INFER + b"X-Slow: ",
        INFER + b"Content-Length: 100\r\n\r\n",
        INFER + b'Content-Length: 100\r\n\r\n{"inputs"',
        INFER + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
def test_slow_request_gets_408(address: Address, sent: bytes) -> None:
    with connect(address) as connection:
        connection.sendall(sent)
        status, _ = read_error(connection)
    assert status == 408
    check_healthy(address)


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_silent_connection_is_closed(address: Address, sent: bytes) -> None:
    with connect(address) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_idle_connection_is_closed_after_a_response(address: Address) -> None:
    with connect(address) as connection:
        connection.sendall(LIVE + b"\r\n")
        content = b""
        while not content.endswith(b'{"live":true}'):
            content += connection.recv(1 << 16)
        connection.sendall(b"\r\n")  # stops uvicorn's own keep-alive timer
        assert connection.recv(1) == b""


def test_large_body_gets_413_and_is_closed(address: Address) -> None:
    with connect(address) as connection:
        connection.sendall(INFER + b"Content-Length: 99999999\r\n\r\nabc")
        status, _ = read_error(connection)
    assert status == 413


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", 400),  # TLS
        (b"GET http://[ HTTP/1.1\r\nHost: test\r\n\r\n", 400),
        (b"GET \xff\xfe HTTP/1.1\r\nHost: test\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (INFER + b"Content-Length: -1\r\n\r\n", 400),
        (INFER + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (INFER + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (INFER + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (INFER + b"X: " + b"y" * 5_000_000 + b"\r\n\r\n", 431),
        (CHUNKED + b"0\r\nX: " + b"y" * 1_000_000, 431),  # trailers
        (CHUNKED + b"2\r\n{}\r\n0\r\nX: " + b"y" * 1_000_000, 431),
        (CHUNKED + b"0\r\n" + b"X: y\r\n" * 100_000, 431),
        (CHUNKED + b"2;" + b"y" * 1_000_000, 431),  # chunk extension
        (b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\n\r\n", 431),
    ],
)  # fmt: skip
def test_malformed_http_gets_400_or_431(address: Address, sent: bytes, status: int) -> None:
    with connect(address) as connection:
        connection.sendall(sent)
        received, _ = read_error(connection)
    assert received == status
    check_healthy(address)


def test_reset_connections_leave_no_request_behind(address: Address, app: App, counting: CountingApp) -> None:
    body, headers = request_bodies.as_bytes(images(100))
    head = INFER + "".join(f"{key}: {value}\r\n" for key, value in headers.items()).encode()
    whole = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    for sent in (whole[:-10], whole[:100], whole, whole + whole[:-1]):
        with connect(address) as connection:
            connection.sendall(sent)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
        check_healthy(address)
    counting.wait_until_idle()
    assert app.service.models["net"].accepted == 0
    assert app.service.buffered_bytes == 0


def test_too_many_connections_get_503(address: Address) -> None:
    connections = [connect(address) for _ in range(20)]
    try:
        with connect(address) as one_more:
            status, error = read_error(one_more)
        assert status == 503
        assert "connections" in error
    finally:
        for connection in connections:
            connection.close()
    check_healthy(address)


def test_pipelined_requests_are_answered_in_order(address: Address) -> None:
    sent = b"".join(INFER.replace(b"test", b"%d" % n) + b"Content-Length: 2\r\n\r\n{}" for n in range(2))
    sent += LIVE + b"Connection: close\r\n\r\n"
    with connect(address) as connection:
        connection.sendall(sent)
        content = read_all(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", content) == [b"400", b"400", b"200"]
