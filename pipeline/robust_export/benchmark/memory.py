"""Memory bandwidth of this machine, the lower bound for the time of a memory-bound operator."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from robust_export.utils.timing import measure


def copy_bandwidth(threads: int, *, megabytes: int = 256, rounds: int = 10) -> float:
    """Return the bytes per second that a large copy reads and writes with `threads` threads."""
    source = np.ones(megabytes << 18, np.float32)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(lambda part: np.copyto(*part), parts))

        timing = measure({"copy": copy}, rounds=rounds, warm_up=0, min_time=0)
    return 2 * source.nbytes / timing["copy"].median
