"""Freed memory is kept where the C library can be told to."""

from __future__ import annotations

import platform

from robust_export.training.malloc import keep_freed_memory


def test_glibc_takes_it() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
