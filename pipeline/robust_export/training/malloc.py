"""Stop the C library from returning freed memory to the system after each step."""

from __future__ import annotations

import ctypes
import platform

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # from glibc's malloc.h
MAX_INT = 2**31 - 1  # bytes; mallopt takes an int


def keep_freed_memory() -> bool:
    """Let malloc reuse freed blocks of any size.

    By default glibc maps every block of more than 32 MB anew and returns the top of the heap to the system. A
    step that frees and allocates its feature maps then pays a page fault per 4 kB. No result changes. The
    process keeps as much memory as its largest step needed.

    Returns:
        Whether it took effect: only with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    accepted = [libc.mallopt(name, MAX_INT) == 1 for name in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD)]
    return all(accepted)
