"""Timing in turns, with a clock that only the timed calls advance."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from robust_export.utils.timing import Timing, measure


class Clock:
    """Replaces time.perf_counter; records the order of calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.log: list[str] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def call(self, name: str, *seconds: float) -> Callable[[], None]:
        """Return a call that takes these seconds in order, and the last of them from then on."""
        left = list(seconds)

        def call() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_first_and_warm_up_calls_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    slow_start = clock.call("a", 100, 50, 1)
    timings = measure({"a": slow_start, "b": clock.call("b", 3)}, rounds=4, warm_up=0, min_time=0)
    assert timings == {"a": Timing(1, 1, 1, 4), "b": Timing(3, 3, 3, 4)}


def test_order_rotates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = {"a": clock.call("a", 1), "b": clock.call("b", 2)}
    timings = measure(calls, rounds=2, warm_up=2, min_time=4)
    assert "".join(clock.log) == "ab" + "aaaaaa" + "bbb" + "bbb" + "aaaaaa"
    assert (timings["a"].calls, timings["b"].calls) == (8, 4)


def test_quartiles(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = {
        "a": clock.call("a", 0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5)
    }  # the first, then warm-up and timed in turn
    assert measure(calls, rounds=5, warm_up=0, min_time=0)["a"] == Timing(3, 2, 4, 5)
