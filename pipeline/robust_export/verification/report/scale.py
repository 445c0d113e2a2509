"""Logarithmic scale of a chart, with separate positions for zero and for infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.verification.parity import HUGE
from robust_export.verification.report.svg import COLOUR
from robust_export.verification.results import Floats

MAX_DECADES = 16  # smaller values are drawn at the lower end
MAX_LABELS = 5


class LogScale:
    """Maps values >= 0 to positions on an axis: log10, zero at the left end, infinity at the right end."""

    def __init__(self, *values: npt.ArrayLike) -> None:
        parts = [np.ravel(np.asarray(part, np.float64)) for part in values]
        every = np.concatenate([np.zeros(0), *parts])
        infinite = ~(every < HUGE)  # NaN as well
        positive = every[(every > 0) & ~infinite]
        self.zero, self.infinity = bool((every == 0).any()), bool(infinite.any())
        self.high = int(np.ceil(np.log10(positive.max()))) if len(positive) else 0
        low = int(np.floor(np.log10(positive.min()))) if len(positive) else -1
        self.low = min(max(low, self.high - MAX_DECADES), self.high - 1)

    @property
    def ends(self) -> tuple[float, float]:
        """The limits of the axis."""
        return self.low - (1.6 if self.zero else 0.1), self.high + (1.6 if self.infinity else 0.1)

    def positions(self, values: npt.ArrayLike) -> Floats:
        """Return the positions of the values on the axis."""
        x = np.asarray(values, np.float64)
        infinite = ~(x < HUGE)
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithms = np.clip(np.log10(np.where(infinite, 1, x)), self.low, self.high)
        return np.asarray(np.where(infinite, self.high + 1, np.where(x == 0, self.low - 1, logarithms)))

    def ticks(self) -> tuple[list[float], list[str]]:
        """Return positions and labels of the ticks, few enough for a narrow chart."""
        step = -(-(self.high - self.low) // (MAX_LABELS - 1))
        apart = 0.13 * (self.ends[1] - self.ends[0])  # labels closer than that overlap
        first = self.low - 1 + apart if self.zero else self.low
        last = self.high + 1 - apart if self.infinity else self.high
        decades = [d for d in range(self.high, self.low - 1, -step) if first <= d <= last][::-1]
        labels = [f"{10.0**d:g}" if -3 <= d <= 3 else f"1e{d:+03d}" for d in decades]
        positions = [float(d) for d in decades]
        if self.zero:
            positions, labels = [self.low - 1.0, *positions], ["0", *labels]
        if self.infinity:
            positions, labels = [*positions, self.high + 1.0], [*labels, "∞"]
        return positions, labels

    def apply(self, axis: Any, *, horizontal: bool) -> None:
        """Set limits and ticks of a matplotlib axis."""
        positions, labels = self.ticks()
        if horizontal:
            axis.set_xlim(*self.ends)
            axis.set_xticks(positions, labels)
        else:
            axis.set_ylim(*self.ends)
            axis.set_yticks(positions, labels)
        line = axis.axvline if horizontal else axis.axhline
        style = {"color": COLOUR["line"], "lw": 0.8, "dashes": (2, 2)}
        if self.zero:
            line(self.low - 0.5, **style)
        if self.infinity:
            line(self.high + 0.5, **style)
