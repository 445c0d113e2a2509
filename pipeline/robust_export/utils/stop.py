"""A request to stop that loses nothing: what hears it finishes its step, saves its state, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Asked from a signal's handler or from another thread; a run looks at it after every step.

    Attributes:
        asked: whether somebody asked.
        heard: whether a run is there that looks. Before and after, a request would be lost.
    """

    def __init__(self) -> None:
        self.asked = False
        self.heard = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear requests within."""
        self.heard = True
        try:
            yield
        finally:
            self.heard = False
