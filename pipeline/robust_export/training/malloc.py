"""Keeps the memory of a step for the next one, where the C library would give it back each time."""

from __future__ import annotations

import ctypes
import platform

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's names, M_..., of malloc.h
LARGEST = 2**31 - 1  # bytes; what mallopt takes is an int


def keep_freed_memory() -> bool:
    """Let malloc reuse freed planes of any size, instead of mapping zeroed pages anew for each.

    By default glibc asks the system for every block of more than 32 MB, and gives the top of the heap back: a
    step that frees and allocates its planes pays a page fault for every 4 kB of them. It changes no number.
    The process keeps as much memory as its largest step needed, which it needs again at once.

    Returns:
        Whether it is so now: only with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    taken = [libc.mallopt(name, LARGEST) == 1 for name in (MMAP_THRESHOLD, TRIM_THRESHOLD)]
    return all(taken)
