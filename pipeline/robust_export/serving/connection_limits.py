"""A REST connection that no client can hold for long: uvicorn's, with limits on time, headers and number."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEADERS = 64 << 10  # bytes of a request line and its headers, and of what is no body in one that is chunked
PIPELINED = 16  # requests of a connection that wait for the one before to be answered
LINGER = 2.0  # s that a connection is read after a refusal


class Connection(HttpToolsProtocol):
    """Ends the connection of whoever is slower than `timeout` seconds, or says what is no HTTP.

    The time runs while a request is being sent, from the connection's beginning or the request's first byte
    to its last. Another runs while answers wait to be taken, whatever is sent meanwhile.
    """

    timeout = 30.0
    most = 1024  # connections at once

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1)  # so that any answer that is not taken is noticed
        self._timer: asyncio.TimerHandle | None = None  # of a request, or of a refusal
        self._untaken: asyncio.TimerHandle | None = None  # of answers
        self._header_bytes = 0  # since the request began, or since the last of its body
        self._receiving = False  # a request has begun and has not ended
        self._in_body = False  # its headers have
        self._refused = False  # what comes from now on is thrown away
        self._running: RequestResponseCycle | None = None  # the request that is or was last worked on
        if len(self.connections) > self.most:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open")
        else:
            self._start(self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._stop_untaken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._header_bytes += len(data)
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        if self._header_bytes > HEADERS:
            self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too large")
        elif self._timer is None and not self._receiving and self._idle():
            self._start(self._too_slow)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            raise OverflowError("too many requests in a row")  # the parser stops at it
        super().on_message_begin()
        if not self._receiving:
            self._receiving = True
            self._start(self._too_slow)

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
        self._stop()
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._untaken = self.loop.call_later(self.timeout, self._reset)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_untaken()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer what is no HTTP; uvicorn calls it."""
        self.refuse(HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 request")

    def refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer with a V2 error, and close; without one if it would be taken for another request's.

        What the client still sends is read for a while: with unread bytes a closed connection is reset, and
        the client would not see the answer. Requests before it that are unanswered are dropped.
        """
        if self._refused:
            return
        if self._may_answer():
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
        self._start(self.transport.close, min(self.timeout, LINGER))

    def _may_answer(self) -> bool:
        """Return whether the next answer on this connection is that of the request that is being received."""
        if self._running is None:
            return True
        if self._running is self.cycle and self._in_body:
            return not self._running.response_started
        return self._running.response_complete

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _too_slow(self) -> None:
        if self._receiving:
            text = f"the request did not arrive within {self.timeout:g} s"
            self.refuse(HTTPStatus.REQUEST_TIMEOUT, text)
        else:
            self.transport.close()

    def _reset(self) -> None:
        """End the connection, and throw away what was not taken, the kernel's part of it too."""
        now = struct.pack("ii", 1, 0)  # on, for 0 s
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        self.transport.abort()

    def _start(self, then: Any, seconds: float | None = None) -> None:
        self._stop()
        self._timer = self.loop.call_later(self.timeout if seconds is None else seconds, then)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_untaken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None


def connections(timeout: float, most: int) -> type[Connection]:
    """Return the kind of connection with these limits, seconds and a number."""
    return type("LimitedConnection", (Connection,), {"timeout": timeout, "most": most})
