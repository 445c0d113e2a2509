"""Freed memory is reused where the C library supports it."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from robust_export.training.malloc import keep_freed_memory

PAGE = 4096  # bytes


def allocate() -> int:
    """Allocate, write and free 64 MB; return the number of page faults."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_supported_with_glibc_only() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not run: the C library is not glibc")
def test_freed_memory_is_reused() -> None:
    keep_freed_memory()
    allocate()
    assert allocate() < 2**26 // PAGE // 10
