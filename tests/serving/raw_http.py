"""HTTP over plain sockets, for requests that no HTTP client would send."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tests.serving import request_bodies
from tests.serving.bundles import Array, expected
from tests.serving.servers import TIMEOUT

Address = tuple[str, int]


def address_of(url: str) -> Address:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def connect(address: Address) -> socket.socket:
    return socket.create_connection(address, TIMEOUT)


def read_all(connection: socket.socket) -> bytes:
    """Return everything until the server closes the connection."""
    content = bytearray()
    while part := connection.recv(1 << 20):
        content += part
    return bytes(content)


def read_error(connection: socket.socket) -> tuple[int, str]:
    """Return the status and the message of a V2 error, after which the server closes the connection."""
    head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.count(b"HTTP/1.1") == 1
    error = json.loads(body)
    assert error.keys() == {"error"}
    return int(head.split()[1]), error["error"]


class OpenRequest:
    """An inference request that the server has accepted (100 Continue) and whose body is still missing."""

    def __init__(self, address: Address, pixels: Array, model: str = "net") -> None:
        self._pixels = pixels
        self._body, headers = request_bodies.as_bytes(pixels)
        headers |= {"Host": "test", "Connection": "close", "Content-Length": str(len(self._body))}
        lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        self.connection = connect(address)
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\n{lines}Expect: 100-continue\r\n\r\n"
        self.connection.sendall(head.encode())
        assert self._read_line().startswith(b"HTTP/1.1 100")

    def _read_line(self) -> bytes:
        content = b""
        while not content.endswith(b"\r\n\r\n"):
            part = self.connection.recv(1)
            assert part, content
            content += part
        return content

    def finish(self) -> bool:
        """Send the body and check the logits; return False if the connection is lost."""
        with self.connection:
            try:
                self.connection.sendall(self._body)
                content = read_all(self.connection)
            except ConnectionError:
                return False
        if not content:
            return False
        head, _, body = content.partition(b"\r\n\r\n")
        lines: list[str] = head.decode().lower().splitlines()
        assert lines[0].split()[1] == "200", content
        headers: dict[str, Any] = dict(line.split(": ", 1) for line in lines[1:])
        logits = request_bodies.read(body, headers)["logits"]
        np.testing.assert_allclose(logits, expected(self._pixels), rtol=1e-5, atol=1e-4)
        return True
