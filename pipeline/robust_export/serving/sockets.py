"""Listening sockets, addresses, and the limit on open files."""

from __future__ import annotations

import socket
from contextlib import suppress

from robust_export.errors import InvalidValue, RobustExportError


def listen(host: str, port: int, option: str) -> socket.socket:
    """Return a listening TCP socket; port 0 takes a free one.

    Its protocol is given, because asyncio sets TCP_NODELAY only on connections of a socket with IPPROTO_TCP.
    Without it, a response of two segments waits 40 ms for the client's delayed acknowledgement.

    Args:
        option: command-line option of the port, for the error message.

    Raises:
        InvalidValue: if the host cannot be resolved.
        RobustExportError: if the port is in use or not permitted.
    """
    family, address = resolve(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise RobustExportError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another {option}"
        ) from error
    return listener


def reserve_port(host: str, port: int, option: str) -> socket.socket:
    """Return a bound socket that keeps the port for worker processes, which share it by SO_REUSEPORT.

    It accepts no connections itself. A process of another program on the port is an error, as in `listen`.
    """
    with listen(host, port, option) as probe:
        port = probe.getsockname()[1]
    family, address = resolve(host, port)
    reserved = socket.socket(family, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(address)
    return reserved


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return the address family and the numeric address of a host.

    Raises:
        InvalidValue: if there is no such host.
    """
    try:
        results = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidValue(f"--host {host!r} cannot be resolved: {error}") from error
    family, _, _, _, address = results[0]
    return family, (str(address[0]), port)


def raise_open_files_limit(count: int) -> int:
    """Raise this process's limit on open files (sockets included) to `count`; return the limit reached.

    Many systems start processes with a soft limit of 1024 and a much higher hard limit.
    """
    try:
        import resource
    except ImportError:  # not POSIX: no such limit
        return count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        soft = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return count if soft == resource.RLIM_INFINITY else soft


def host_and_port(address: tuple[str, int]) -> str:
    """Return an address as in a URL.

    >>> host_and_port(("127.0.0.1", 80)), host_and_port(("::1", 80))
    ('127.0.0.1:80', '[::1]:80')
    """
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_local(host: str) -> bool:
    """Return whether a host is a loopback address."""
    with suppress(InvalidValue):
        address = resolve(host, 0)[1][0]
        return address == "::1" or address.startswith("127.")
    return False
