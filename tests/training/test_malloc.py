"""Freed memory is reused where the C library supports it."""

from __future__ import annotations

import ctypes
import platform
import resource

import pytest

from robust_export.training.malloc import keep_freed_memory

PAGE, SIZE = 4096, 2**26  # bytes


def page_faults_of_64_mb() -> int:
    """Allocate, write and free 64 MB; return the number of page faults.

    Call malloc itself: torch calls posix_memalign, which glibc before 2.38 may not serve from a freed block.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_supported_with_glibc_only() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not run: the C library is not glibc")
def test_freed_memory_is_reused() -> None:
    keep_freed_memory()
    page_faults_of_64_mb()
    assert page_faults_of_64_mb() < SIZE // PAGE // 10
