"""Report the phases of a build, and cancel it on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

POLL_SECONDS = 0.02  # a signal may wake another thread than the one that waits


class Monitor:
    """Report the phases of a build, and cancel it on Ctrl-C.

    Args:
        on_phase: called with the name of each phase when it begins, from any thread.
    """

    def __init__(self, on_phase: Callable[[str], None] | None = None) -> None:
        self.on_phase = on_phase
        self.cancelled = False
        self.failure: Exception | None = None  # raised by on_phase

    def progress_monitor(self, trt: Any) -> Any:
        """Return a trt.IProgressMonitor for one build.

        Its methods never raise: an exception there would end the process.
        """
        monitor = self

        class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]
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

        return ProgressMonitor()

    def run(self, build: Callable[[], Any]) -> Any:
        """Return the result of a build that runs in a thread, which Ctrl-C cancels.

        Raises:
            KeyboardInterrupt: on Ctrl-C, once TensorRT has stopped; ending the process before aborts it.
            Exception: raised by `on_phase`.
        """
        with ThreadPoolExecutor(1) as pool, _interrupt_event() as interrupted:
            future = pool.submit(build)
            while wait([future], timeout=POLL_SECONDS).not_done:
                self.cancelled = self.cancelled or interrupted.is_set()
        if interrupted.is_set():
            raise KeyboardInterrupt
        if self.failure is not None:
            raise self.failure
        return future.result()


@contextmanager
def _interrupt_event() -> Iterator[threading.Event]:
    """Yield an event that SIGINT, and SIGTERM if it has a handler, set instead of calling the handler.

    Only the main thread can replace handlers; in another one the event is never set.
    """
    event = threading.Event()
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        installed = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        handlers = {number: handler for number, handler in installed.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda *_: event.set())
    try:
        yield event
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
