"""Where the server listens."""

from __future__ import annotations

import socket
from contextlib import suppress

from robust_export.errors import InvalidValue, RobustExportError


def listen(host: str, port: int, option: str) -> socket.socket:
    """Return a socket that is bound to host:port, for REST; port 0 takes a free one.

    Args:
        option: what the port was given with, for the message.

    Raises:
        InvalidValue: if there is no such host.
        RobustExportError: if the port is taken, or may not be had.
    """
    family, address = resolve(host, port)
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1024)
    except OSError as error:
        bound.close()
        raise RobustExportError(
            f"{host}:{port} cannot be listened on: {error.strerror}; choose another {option}"
        ) from error
    return bound


def reserve(host: str, port: int, option: str) -> socket.socket:
    """Return a socket that holds host:port while several processes of ours listen there (SO_REUSEPORT).

    It takes no connection itself. Whoever else listens there already is noticed first.
    """
    with listen(host, port, option) as first:
        port = first.getsockname()[1]
    family, address = resolve(host, port)
    held = socket.socket(family, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(address)
    return held


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return the family and the address of a host."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise InvalidValue(f"--host is {host!r}, which is no address: {error}") from error
    return found[0], (str(found[4][0]), port)


def allow_files(count: int) -> int:
    """Raise the number of files, sockets among them, that this process may have open; return what it is.

    Many systems start processes with 1024, and let them have more.
    """
    try:
        import resource
    except ImportError:  # not POSIX, where there is no such limit
        return count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        soft = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return count if soft == resource.RLIM_INFINITY else soft


def shown(address: tuple[str, int]) -> str:
    """Return an address as URLs have it.

    >>> shown(("127.0.0.1", 80)), shown(("::1", 80))
    ('127.0.0.1:80', '[::1]:80')
    """
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_local(host: str) -> bool:
    """Return whether only this machine reaches the host."""
    with suppress(InvalidValue):
        address = resolve(host, 0)[1][0]
        return address == "::1" or address.startswith("127.")
    return False
