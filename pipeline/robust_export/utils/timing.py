"""Interleaved timing of several calls, so that their ratios are comparable.

All calls run in one process. In each round every call has one turn, so that a slow phase of the machine
affects all of them. Before a turn the call runs without being timed, until caches are warm and the thread
pools of the previous call are idle (they spin for milliseconds). The order rotates from round to round.
docs/decisions/0017-timing.md compares this with torch.utils.benchmark and pyperf.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, quartiles, and the number of timed calls."""

    median: float
    low: float
    high: float
    calls: int


def measure(
    calls: Mapping[str, Call], *, rounds: int = 10, warm_up: float = 0.08, min_time: float = 0.05
) -> dict[str, Timing]:
    """Return the timing of each call, measured in `rounds` turns.

    Args:
        warm_up: seconds, at least, of untimed calls before a turn.
        min_time: seconds, at least, of timed calls in a turn.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for call in calls.values():
        call()  # includes one-time work such as compilation
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            _repeat(calls[name], warm_up)
            seconds[name] += _repeat(calls[name], min_time)
    return {name: _summarize(values) for name, values in seconds.items()}


def _repeat(call: Call, min_time: float) -> list[float]:
    """Call once, and again until `min_time` has passed; return the seconds of each call."""
    seconds: list[float] = []
    total = 0.0
    while not seconds or total < min_time:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
        total += seconds[-1]
    return seconds


def _summarize(seconds: list[float]) -> Timing:
    low, median, high = (float(q) for q in np.percentile(seconds, [25, 50, 75]))
    return Timing(median, low, high, len(seconds))
