"""Listening sockets as asyncio uses them."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing

import pytest

from robust_export.serving.sockets import listen


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_accepted_connections_send_without_delay(host: str) -> None:
    async def accepted() -> int:
        connection: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
        with closing(listen(host, 0, "--port")) as listener:
            server = await asyncio.start_server(
                lambda _, writer: connection.set_result(writer), sock=listener
            )
            async with server:
                _, client = await asyncio.open_connection(*listener.getsockname()[:2])
                writer = await connection
                delay_off: int = writer.get_extra_info("socket").getsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NODELAY
                )
                for one in (writer, client):
                    one.close()
                    await one.wait_closed()
        return delay_off

    assert asyncio.run(accepted()) == 1
