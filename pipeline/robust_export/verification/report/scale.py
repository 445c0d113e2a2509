"""A logarithmic scale with places of their own for zero and for infinity, which it otherwise has not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.verification.parity import HUGE, Floats
from robust_export.verification.report.svg import COLOUR

MOST_DECADES = 16  # what is smaller than the largest by more is drawn as if it were by that much
LABELS = 5


class LogScale:
    """Places values [M] >= 0 on an axis: their log10, zero one step to the left, infinity to the right."""

    def __init__(self, *values: npt.ArrayLike) -> None:
        parts = [np.ravel(np.asarray(part, np.float64)) for part in values]
        every = np.concatenate([np.zeros(0), *parts])
        infinite = ~(every < HUGE)  # NaN as well
        positive = every[(every > 0) & ~infinite]
        self.zero, self.infinity = bool((every == 0).any()), bool(infinite.any())
        self.high = int(np.ceil(np.log10(positive.max()))) if len(positive) else 0
        low = int(np.floor(np.log10(positive.min()))) if len(positive) else -1
        self.low = min(max(low, self.high - MOST_DECADES), self.high - 1)

    @property
    def ends(self) -> tuple[float, float]:
        """The limits of the axis."""
        return self.low - (1.6 if self.zero else 0.1), self.high + (1.6 if self.infinity else 0.1)

    def place(self, values: npt.ArrayLike) -> Floats:
        """Return where the values are on the axis."""
        given = np.asarray(values, np.float64)
        infinite = ~(given < HUGE)
        with np.errstate(divide="ignore", invalid="ignore"):
            places = np.clip(np.log10(np.where(infinite, 1, given)), self.low, self.high)
        return np.asarray(np.where(infinite, self.high + 1, np.where(given == 0, self.low - 1, places)))

    def ticks(self) -> tuple[list[float], list[str]]:
        """Return places and their labels, few enough for a narrow chart."""
        step = -(-(self.high - self.low) // (LABELS - 1))
        apart = 0.13 * (self.ends[1] - self.ends[0])  # two labels run into each other below
        first = self.low - 1 + apart if self.zero else self.low
        last = self.high + 1 - apart if self.infinity else self.high
        decades = [d for d in range(self.high, self.low - 1, -step) if first <= d <= last][::-1]
        labels = [f"{10.0**d:g}" if -3 <= d <= 3 else f"1e{d:+03d}" for d in decades]
        places = [float(d) for d in decades]
        if self.zero:
            places, labels = [self.low - 1.0, *places], ["0", *labels]
        if self.infinity:
            places, labels = [*places, self.high + 1.0], [*labels, "∞"]
        return places, labels

    def apply(self, axis: Any, *, horizontal: bool) -> None:
        """Make it the scale of a matplotlib axis."""
        places, labels = self.ticks()
        if horizontal:
            axis.set_xlim(*self.ends)
            axis.set_xticks(places, labels)
        else:
            axis.set_ylim(*self.ends)
            axis.set_yticks(places, labels)
        line = axis.axvline if horizontal else axis.axhline
        style = {"color": COLOUR["line"], "lw": 0.8, "dashes": (2, 2)}
        if self.zero:
            line(self.low - 0.5, **style)
        if self.infinity:
            line(self.high + 0.5, **style)
