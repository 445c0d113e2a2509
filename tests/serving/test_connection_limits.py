"""Connections that a client would hold: untaken answers, requests in a row; the application is the test's."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from robust_export.serving.connection_limits import connections
from tests.serving.servers import LONG

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
LATE = GET.replace(b"/", b"/late", 1)
LAST = GET[:-2] + b"Connection: close\r\n\r\n"
LARGE = 20 << 20  # bytes, more than the kernel takes
Send = Callable[[Any], Awaitable[None]]


class Served:
    """An application behind the server's connections: /large is more than is taken, /late waits for `let`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.entered, self.let, self.left = (threading.Event() for _ in range(3))
        self.address = ("", 0)

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        self.asked.append(scope["path"])
        try:
            await self._answer(scope, receive, send)
        finally:
            self.left.set()

    async def _answer(self, scope: Any, receive: Any, send: Send) -> None:
        body = scope["path"].encode()
        if scope["path"] == "/large":
            body = bytes(LARGE)
        if scope["path"] == "/late":
            self.entered.set()
            await asyncio.to_thread(self.let.wait, LONG)
            self.left.clear()
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, LONG)


@contextmanager
def serve(timeout: float) -> Iterator[Served]:
    app = Served()
    config = uvicorn.Config(
        app, http=connections(timeout, 20), ws="none", lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app.address = listener.getsockname()
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield app
        finally:
            app.let.set()
            server.should_exit = server.force_exit = True
            thread.join(LONG)


@pytest.fixture(scope="module")
def hasty() -> Iterator[Served]:
    """It waits for a second."""
    with serve(timeout=1) as app:
        yield app


def reset(connection: socket.socket) -> bool:
    """Return whether the other side resets the connection, while nothing is read from it."""
    watch = select.poll()
    watch.register(connection, 0)
    return any(event & select.POLLERR for _, event in watch.poll(LONG * 1000))


def everything(connection: socket.socket) -> bytes:
    content = b""
    while part := connection.recv(1 << 20):
        content += part
    return content


@pytest.mark.parametrize("more", [b"", GET, GET[:9], b"\r\n", b"no HTTP\r\n\r\n"])
def test_who_takes_no_answer_is_let_go(hasty: Served, more: bytes) -> None:
    with hasty.connect() as connection:
        connection.sendall(GET.replace(b"/", b"/large", 1))
        assert connection.recv(1, socket.MSG_PEEK)  # the answer has begun
        connection.sendall(more)
        assert reset(connection)


def test_who_takes_an_answer_is_still_told_that_the_next_request_is_slow(hasty: Served) -> None:
    with hasty.connect() as connection:
        connection.sendall(GET.replace(b"/", b"/large", 1) + GET[:9])
        content = everything(connection)
    assert content.startswith(b"HTTP/1.1 200")
    assert content[LARGE:].partition(b"HTTP/1.1 ")[2].startswith(b"408")


@pytest.fixture
def patient() -> Iterator[Served]:
    with serve(timeout=LONG) as app:
        yield app


@pytest.fixture
def impatient() -> Iterator[Served]:
    with serve(timeout=1) as app:
        yield app


@pytest.mark.parametrize(
    "more",
    [
        b"no HTTP\r\n\r\n",
        GET[:9],
        b"GET http://[ HTTP/1.1\r\n\r\n",
        GET[:-2] + b"X: " + b"y" * 1_000_000,
        b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_a_refusal_is_no_answer_to_an_earlier_request(
    impatient: Served, more: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with impatient.connect() as connection:
        connection.sendall(LATE)
        assert impatient.entered.wait(LONG)
        connection.sendall(more)
        assert everything(connection) == b""
    impatient.let.set()
    with impatient.connect() as another:  # the answer that is late disturbs nothing
        assert impatient.left.wait(LONG)
        another.sendall(LAST)
        assert everything(another).startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.exc_info]


def test_only_so_many_requests_of_a_connection_wait(patient: Served) -> None:
    with patient.connect() as connection:
        connection.sendall(LATE + GET * 17)
        assert everything(connection) == b""
    assert patient.entered.wait(LONG)  # which may be after the connection's end
    assert patient.asked == ["/late"]
    patient.let.set()
    with patient.connect() as connection:
        connection.sendall(LATE + GET * 15 + LAST)
        assert everything(connection).count(b"HTTP/1.1 200") == 17
    assert len(patient.asked) == 18


def test_what_is_no_address_is_refused_after_other_requests(patient: Served) -> None:
    with patient.connect() as connection:
        connection.sendall(GET)
        assert connection.recv(1 << 10).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET http://[ HTTP/1.1\r\n\r\n")
        assert everything(connection).removeprefix(b"/").startswith(b"HTTP/1.1 400")
