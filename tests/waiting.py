"""Waiting for another process or thread, with a limit and without keeping a core busy."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable

TIMEOUT = 60.0  # s; longer than anything takes unless it hangs


def wait_until(condition: Callable[[], object], timeout: float = TIMEOUT, interval: float = 0.02) -> None:
    """Check `condition` every `interval` seconds until it is true; raise TimeoutError after `timeout`.

    For what can only be asked for, such as a number of /metrics. Wait for a process with `wait_for_exit`, and
    for a thread or a pipe with their own blocking calls.
    """
    deadline, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the condition was still false after {timeout} s")
        pause.wait(interval)


def wait_for_exit(pid: int, timeout: float = TIMEOUT) -> None:
    """Wait for the end of a process that need not be a child; raise TimeoutError after `timeout` seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([descriptor], [], [], timeout)[0]:
            raise TimeoutError(f"process {pid} still runs after {timeout} s")
    finally:
        os.close(descriptor)
