"""Tells how a build goes, and stops it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any


class Monitor:
    """Tells how a build goes, and stops it.

    Args:
        on_phase: called with the name of each phase as it begins, from any thread.
    """

    def __init__(self, on_phase: Callable[[str], None] | None = None) -> None:
        self.on_phase = on_phase
        self.cancelled = False
        self.failure: Exception | None = None  # of on_phase

    def listener(self, trt: Any) -> Any:
        """Return the trt.IProgressMonitor of one build; an exception in it would end the process."""
        monitor = self

        class Listener(trt.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase: str, *_: object) -> None:
                try:
                    if monitor.on_phase and not monitor.cancelled:
                        monitor.on_phase(phase)
                except Exception as error:
                    monitor.cancelled, monitor.failure = True, error

            def step_complete(self, *_: object) -> bool:
                return not monitor.cancelled

            def phase_finish(self, *_: object) -> None:
                pass

        return Listener()

    def run(self, work: Callable[[], Any]) -> Any:
        """Do a build's work in a thread, and stop it at Ctrl-C.

        Raises:
            KeyboardInterrupt: once TensorRT has stopped, however often it was asked to: to end while it works
                aborts the process.
        """
        with ThreadPoolExecutor(1) as pool, _interrupts() as interrupted:
            future = pool.submit(work)
            while wait(
                [future], timeout=0.02
            ).not_done:  # seconds; a signal may wake another thread than this
                self.cancelled = self.cancelled or interrupted.is_set()
        if interrupted.is_set():
            raise KeyboardInterrupt
        if self.failure is not None:
            raise self.failure
        return future.result()


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Let Ctrl-C, and SIGTERM where it raises, set an event meanwhile; only the main thread may hear them."""
    event = threading.Event()
    heard = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        heard = {number: handler for number, handler in before.items() if callable(handler)}
    for number in heard:
        signal.signal(number, lambda *_: event.set())
    try:
        yield event
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)
