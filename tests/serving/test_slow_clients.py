"""Clients that are slow, vanish, or speak no HTTP, over real connections."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.serving import request_bodies
from tests.serving.bundles import expected, images
from tests.serving.servers import LONG, Server, start
from tests.waiting import wait_until

INFER = b"POST /v2/models/net/infer HTTP/1.1\r\nHost: test\r\n"
CHUNKED = INFER + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def hasty(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits for a second, and has 20 connections."""
    folder = tmp_path_factory.mktemp("hasty")
    options = ("--timeout", "1", "--connections", "20", "--max-body", "1", "--no-grpc")
    with start(folder, "--model", net, *options) as running:
        yield running


def connect(server: Server) -> socket.socket:
    host, port = server.rest.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), LONG)


def answer(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """Return the status and the JSON of what comes until the server closes the connection."""
    content = b""
    while part := connection.recv(1 << 16):
        content += part
    head, _, body = content.partition(b"\r\n\r\n")
    assert head.count(b"HTTP/1.1") == 1
    return int(head.split()[1]), json.loads(body)


def healthy(server: Server) -> None:
    body, headers = request_bodies.as_bytes(images(1))
    lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    with connect(server) as connection:
        connection.sendall(
            INFER + f"{lines}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
        )
        content = b""
        while part := connection.recv(1 << 16):
            content += part
    head, _, rest = content.partition(b"\r\n\r\n")
    pairs = dict(line.split(": ", 1) for line in head.decode().lower().splitlines()[1:])
    np.testing.assert_allclose(request_bodies.read(rest, pairs)["logits"], expected(images(1)), atol=1e-4)


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
def test_who_is_slow_is_told_so(hasty: Server, sent: bytes) -> None:
    with connect(hasty) as connection:
        connection.sendall(sent)
        status, said = answer(connection)
    assert status == 408
    assert said.keys() == {"error"}
    healthy(hasty)


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_who_says_nothing_is_let_go(hasty: Server, sent: bytes) -> None:
    with connect(hasty) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_who_says_nothing_more_is_let_go(hasty: Server) -> None:
    with connect(hasty) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
        content = b""
        while not content.endswith(b'{"live":true}'):
            content += connection.recv(1 << 16)
        connection.sendall(b"\r\n")  # after which uvicorn's own time for idle connections does not run
        assert connection.recv(1) == b""


def test_who_goes_on_after_a_refusal_is_let_go(hasty: Server) -> None:
    with connect(hasty) as connection:
        connection.sendall(INFER + b"Content-Length: 99999999\r\n\r\nabc")
        status, said = answer(connection)
    assert status == 413
    assert said.keys() == {"error"}


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
        (CHUNKED + b"2;" + b"y" * 1_000_000, 431),  # an extension of a chunk
        (b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\n\r\n", 431),
    ],
)  # fmt: skip
def test_what_is_no_request(hasty: Server, sent: bytes, status: int) -> None:
    with connect(hasty) as connection:
        connection.sendall(sent)
        got, said = answer(connection)
    assert got == status
    assert said.keys() == {"error"}
    healthy(hasty)


def test_who_vanishes_takes_nothing_along(hasty: Server) -> None:
    body, headers = request_bodies.as_bytes(images(100))
    head = INFER + "".join(f"{k}: {v}\r\n" for k, v in headers.items()).encode()
    whole = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    for sent in (whole[:-10], whole[:100], whole, whole + whole[:-1]):
        with connect(hasty) as connection:
            connection.sendall(sent)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
        healthy(hasty)
    wait_until(lambda: hasty.metric("robust_export_accepted_requests") == 0)


def test_there_are_only_so_many_connections(hasty: Server) -> None:
    crowd = [connect(hasty) for _ in range(20)]
    try:
        with connect(hasty) as late:
            status, said = answer(late)
        assert status == 503
        assert "connections" in str(said["error"])
    finally:
        for connection in crowd:
            connection.close()
    healthy(hasty)


def test_requests_in_one_packet_are_answered_in_order(hasty: Server) -> None:
    sent = b"".join(INFER.replace(b"test", b"%d" % n) + b"Content-Length: 2\r\n\r\n{}" for n in range(2))
    sent += b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    with connect(hasty) as connection:
        connection.sendall(sent)
        content = b""
        while part := connection.recv(1 << 16):
            content += part
    assert re.findall(rb"HTTP/1.1 (\d+)", content) == [b"400", b"400", b"200"]
