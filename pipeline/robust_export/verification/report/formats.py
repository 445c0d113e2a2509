"""Number formats of report.html: few digits, a unit, and no value rounded to 0 % or 100 % that is neither."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from robust_export.verification.parity import HUGE

NONE = "–"  # noqa: RUF001 - for a missing value
MAX_LISTED = 12  # items of a list that are shown


def percent(fraction: float, digits: int = 1) -> str:
    """Return a fraction as "98.6%", with more digits where it would be rounded to 0 % or 100 %."""
    while digits < 4 and round(fraction, digits + 2) in (0, 1) and fraction not in (0, 1):
        digits += 1
    return f"{fraction:.{digits}%}"


def points(change: float, allowed: float = 0.0, toward: int = 0) -> str:
    """Return a change of accuracy as "-0.3%", with as many digits as `allowed` needs.

    Args:
        toward: 1 rounds up and -1 down, for the ends of an interval; 0 to the nearest.
    """
    digits = 1
    while digits < 4 and abs(allowed * 10 ** (2 + digits) - round(allowed * 10 ** (2 + digits))) > 1e-9:
        digits += 1
    scaled = change * 10 ** (2 + digits)
    whole = round(scaled) if toward == 0 else math.ceil(scaled * toward - 1e-9) * toward
    return f"{'−' if whole < 0 else ''}{abs(whole) / 10**digits:.{digits}f}%"  # noqa: RUF001


def interval(ends: tuple[float, float]) -> str:
    """Return an accuracy's interval as "96.8% to 99.4%"."""
    return f"{ends[0]:.1%} to {ends[1]:.1%}"


def number(value: float | None) -> str:
    """Return a number as "0.0132", "2e-06", "12,345" or "infinite"."""
    if value is None:
        return NONE
    if math.isnan(value):
        return "not a number"
    size = abs(value)
    if size >= HUGE:
        return "infinite"
    if size >= 1e4:
        return f"{value:,.0f}" if size < 1e9 else f"{value:.2g}"
    return f"{value:.3g}" if size >= 1e-3 or size == 0 else f"{value:.2g}"


def cosine(value: float) -> str:
    """Return a cosine similarity, near 1 as "1 - 7e-12"."""
    missing = 1 - value
    return f"{value:.4f}" if missing >= 1e-4 else "1" if missing <= 0 else f"1 − {missing:.1g}"  # noqa: RUF001


def size(count: int | None) -> str:
    """Return a number of bytes as "44.7 MB" (of 1,000,000)."""
    if count is None:
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def latency(seconds: float) -> str:
    """Return the time of a call as "0.42 ms"."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def duration(seconds: float) -> str:
    """Return the time of a stage as "3 min 20 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def numerator_of_255(eps: float) -> int | None:
    """Return k if eps is k/255, else None."""
    k = round(eps * 255)
    return k if 0 < k < 255 and abs(eps * 255 - k) < 1e-6 else None


def radius(eps: float) -> str:
    """Return a radius as "0.0314 (8/255)", or as "0.15" if it is not a multiple of 1/255."""
    k = numerator_of_255(eps)
    return f"{eps:.3g} ({k}/255)" if k else f"{eps:.3g}"


def listing(items: Iterable[Any], listed: int = MAX_LISTED) -> str:
    """Return items separated by commas; of a long list the first ones and how many follow."""
    texts = [str(item) for item in items]
    more = len(texts) - listed
    return ", ".join(texts[:listed]) + (f" and {more:,} more" if more > 0 else "")


def rows(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a nested table as rows of (name, formatted value)."""
    result = []
    for key, value in table.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            result += rows(value, f"{name}: ")
        else:
            result.append((name, _format(value)))
    return result


def _format(value: Any) -> str:
    if value is None or value in ("", [], ()):
        return NONE
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return listing(value)
    return str(value)
