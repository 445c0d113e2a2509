"""A request to stop training after the current step, with its state saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """Set by a signal handler or another thread, read by a training run after every step.

    Attributes:
        requested: whether to stop.
        observed: whether a run is currently reading it. If not, setting it has no effect, and whoever handles
            the signal has to end the process by other means.
    """

    def __init__(self) -> None:
        self.requested = False
        self.observed = False

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Mark the request as observed within the context."""
        self.observed = True
        try:
            yield
        finally:
            self.observed = False
