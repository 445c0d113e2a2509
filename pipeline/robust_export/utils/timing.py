"""Timing several ways of doing the same, so that their ratios mean something.

Everything runs in one process, in turns: what slows the machine down for a while slows all of them. A turn
begins with calls that are not counted, until the caches are warm and the threads of the one before have
gone to sleep (thread pools keep spinning for milliseconds), and the order changes from round to round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, the quartiles, and how many calls they are of."""

    median: float
    low: float
    high: float
    calls: int


def measure(
    contestants: Mapping[str, Call], *, rounds: int = 10, settle: float = 0.08, turn: float = 0.05
) -> dict[str, Timing]:
    """Return the time that each contestant takes, measured in `rounds` turns each.

    Args:
        settle: seconds, at least, of calls before a turn that are not counted.
        turn: seconds, at least, of calls that are counted.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for call in contestants.values():
        call()  # what happens once, happens here
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            _run_for(contestants[name], settle)
            seconds[name] += _run_for(contestants[name], turn)
    return {name: _summary(values) for name, values in seconds.items()}


def copy_bandwidth(threads: int, *, megabytes: int = 256, rounds: int = 10) -> float:
    """Return the bytes a second that a large copy reads and writes, with so many threads."""
    source = np.ones(megabytes << 18, np.float32)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(lambda part: np.copyto(*part), parts))

        timing = measure({"copy": copy}, rounds=rounds, settle=0, turn=0)
    return 2 * source.nbytes / timing["copy"].median


def _run_for(call: Call, least: float) -> list[float]:
    """Call at least once, and until `least` seconds are over; return what each call took."""
    taken: list[float] = []
    total = 0.0
    while not taken or total < least:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
        total += taken[-1]
    return taken


def _summary(values: list[float]) -> Timing:
    low, median, high = (float(q) for q in np.percentile(values, [25, 50, 75]))
    return Timing(median, low, high, len(values))
