"""Limits of a REST connection: slow clients, unread responses, oversized headers, number of connections.

| client | response |
|---|---|
| sends a request slower than `timeout` | 408, connection closed |
| sends nothing for `timeout` | connection closed |
| does not read a response for `timeout` | connection reset |
| sends more than 64 KiB of headers | 431, connection closed |
| sends what is not HTTP/1.1 | 400, connection closed |
| opens more than `max_connections` | 503, connection closed |
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEADER_BYTES = 64 << 10  # request line and headers; also chunk headers and trailers between body bytes
MAX_PIPELINED = 16  # requests of one connection that wait for the previous response
LINGER = 2.0  # s that input is read and discarded after an error response


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's HTTP connection with limits.

    One timer runs while a request is being received: from the start of the connection, or the request's first
    byte, to its last byte. A second timer runs while the client does not read a response.
    """

    timeout = 30.0  # s
    max_connections = 1024

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1)  # pause_writing is called for any unread response
        self._timer: asyncio.TimerHandle | None = None  # of a request, or of closing after an error
        self._unread_timer: asyncio.TimerHandle | None = None  # of responses
        self._header_bytes = 0  # since the request began, or since the last byte of its body
        self._receiving = False  # a request has begun and is not complete
        self._in_body = False  # its headers are complete
        self._refused = False  # an error response was sent; further input is discarded
        self._running: RequestResponseCycle | None = None  # the request that the application got last
        if len(self.connections) > self.max_connections:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open")
        else:
            self._start_timer(self._on_request_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._header_bytes += len(data)
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        if self._header_bytes > MAX_HEADER_BYTES:
            self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too large")
        elif self._timer is None and not self._receiving and self._is_idle():
            self._start_timer(self._on_request_timeout)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise OverflowError("too many pipelined requests")  # stops the parser
        super().on_message_begin()
        if not self._receiving:
            self._receiving = True
            self._start_timer(self._on_request_timeout)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_body = True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._receiving = self._in_body = False
        self._header_bytes = 0
        self._stop_timer()
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self.timeout, self._reset)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread_timer()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer input that is not HTTP; called by uvicorn."""
        self.refuse(HTTPStatus.BAD_REQUEST, "this is not an HTTP/1.1 request")

    def refuse(self, status: HTTPStatus, message: str) -> None:
        """Send a V2 error and close the connection; only close if an earlier request awaits its response.

        Further input is read for a while: closing a connection with unread input resets it, and the client
        would not see the error. Earlier unanswered requests are dropped.
        """
        if self._refused:
            return
        if self._can_send_error():
            body = json.dumps({"error": message}).encode()
            retry = "retry-after: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self._refused = True
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._start_timer(self.transport.close, min(self.timeout, LINGER))

    def _can_send_error(self) -> bool:
        """Return whether the next response on this connection belongs to the request being received."""
        if self._running is None:
            return True
        if self._running is self.cycle and self._in_body:
            return not self._running.response_started
        return self._running.response_complete

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _on_request_timeout(self) -> None:
        if self._receiving:
            text = f"the request did not arrive within {self.timeout:g} s"
            self.refuse(HTTPStatus.REQUEST_TIMEOUT, text)
        else:
            self.transport.close()

    def _reset(self) -> None:
        """Reset the connection and discard unread output, including the kernel's send buffer."""
        linger = struct.pack("ii", 1, 0)  # on, 0 s
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def _start_timer(self, callback: Any, seconds: float | None = None) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.timeout if seconds is None else seconds, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None


def limited_connection(timeout: float, max_connections: int) -> type[LimitedConnection]:
    """Return a connection class with these limits (timeout in seconds)."""
    limits = {"timeout": timeout, "max_connections": max_connections}
    return type("LimitedConnection", (LimitedConnection,), limits)
