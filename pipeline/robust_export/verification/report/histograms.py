"""How far apart the logits are: histograms, and gap against margin in the search for the worst case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from robust_export.verification.parity import Floats
from robust_export.verification.report.entries import Entry
from robust_export.verification.report.scale import LogScale
from robust_export.verification.report.svg import COLOUR, draw
from robust_export.verification.report.wording import number
from robust_export.verification.results import Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BIN = 0.125  # decades
CELLS = (110, 80)  # of a scatter, which shows one point of each that has any
PANEL, BELOW = 73, 60  # heights, in CSS pixels
SCATTER = 290

Indices = npt.NDArray[np.intp]


def gaps(entry: Entry, kinds: Mapping[str, Floats]) -> Markup:
    """Draw a histogram of gaps for each kind of input; what the gate forbids is red."""
    gate = entry.gates.max_gap
    scale = LogScale(*kinds.values(), gate)

    def plot(figure: Figure) -> None:
        axes = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (kind, values) in zip(axes, kinds.items(), strict=True):
            most = _histogram(ax, scale.place(values), float(scale.place(gate)), scale, f"c{entry.colour}")
            ax.set(title=kind, ylim=(0, 1.05 * most), yticks=[0, most])
            scale.apply(ax, horizontal=True)
        axes[-1].set_xlabel("largest difference of a logit, per input")

    label = f"Histograms of the gaps of artifact {entry.letter}, at most {number(gate)} is allowed"
    return draw(f"gaps-{entry.letter}", label, BELOW + PANEL * len(kinds), plot)


def scatter(entry: Entry, seen: Points) -> Markup:
    """Draw gap against margin of the inputs that the worst-case search visited."""
    gates = entry.gates
    across = LogScale(seen.margin, gates.max_flip_margin)
    up = LogScale(seen.gap, gates.max_gap)

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        across.apply(ax, horizontal=True)
        up.apply(ax, horizontal=False)
        x, y = across.place(seen.margin), up.place(seen.gap)
        (left, right), (bottom, top) = across.ends, up.ends
        # A decision can flip only where gap >= margin / 2: each of two logits moves by a gap at most.
        edge = np.array([left, right])
        ax.fill_between(
            edge, edge - np.log10(2), np.full(2, top + right - left), color=COLOUR["fail"], alpha=0.08, lw=0
        )
        ax.plot(edge, edge - np.log10(2), color=COLOUR["ink"], lw=1, dashes=(1, 1.5))
        ax.axhline(float(up.place(gates.max_gap)), color=COLOUR["fail"], lw=1.2, dashes=(5, 2))
        ax.axvline(float(across.place(gates.max_flip_margin)), color=COLOUR["fail"], lw=1.2, dashes=(5, 2))
        _cloud(ax, x[~seen.flipped], y[~seen.flipped], across, up, COLOUR[f"c{entry.colour}"])
        _crosses(ax, x[seen.flipped], y[seen.flipped], across, up)
        if len(y):
            ax.plot(x[y.argmax()], y.max(), "o", mfc="none", mec=COLOUR["ink"], ms=9, mew=1.2, clip_on=False)
        ax.set(xlabel="margin of the source (top-2)", ylabel="gap", xlim=(left, right), ylim=(bottom, top))

    flips = int(seen.flipped.sum())
    label = f"Gap against margin in the worst-case search of artifact {entry.letter}: {flips:,} flips shown"
    return draw(f"scatter-{entry.letter}", label, SCATTER, plot)


def _histogram(ax: Axes, places: Floats, gate: float, scale: LogScale, colour: str) -> int:
    """Draw gaps by their places on the scale, an edge of a bin at the gate; return the largest count."""
    first = gate - BIN * np.ceil((gate - scale.low) / BIN)
    edges = np.arange(first, scale.high + 2 * BIN, BIN)
    apart = [-1.35 + scale.low, -0.65 + scale.low, 0.65 + scale.high, 1.35 + scale.high]
    inside, _ = np.histogram(places, edges)
    beyond = edges[:-1] >= gate - BIN / 2
    zeros, infinities = int((places < scale.low - 0.5).sum()), int((places > scale.high + 0.5).sum())
    ax.stairs(np.where(beyond, 0, inside), edges, fill=True, color=COLOUR[colour])
    ax.stairs(np.where(beyond, inside, 0), edges, fill=True, color=COLOUR["fail"])
    if scale.zero:
        ax.stairs([zeros], apart[:2], fill=True, color=COLOUR[colour])
    if scale.infinity:
        ax.stairs([infinities], apart[2:], fill=True, color=COLOUR["fail"])
    ax.axvline(gate, color=COLOUR["fail"], lw=1.2, dashes=(5, 2))
    return max(int(inside.max()), zeros, infinities, 1)


def _cloud(ax: Axes, x: Floats, y: Floats, across: LogScale, up: LogScale, colour: str) -> None:
    """Draw points as one path, those that stand for many darker."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    first, count = _thinned(x, y, across, up)
    for few, many, alpha in ((1, 2, 0.35), (2, 10, 0.6), (10, np.inf, 0.95)):
        chosen = first[(count >= few) & (count < many)]
        if len(chosen):
            ends = np.repeat(np.stack([x[chosen], y[chosen]], axis=1), 2, axis=0)
            dots = Path(ends, [Path.MOVETO, Path.LINETO] * len(chosen))  # lines of no length with round ends
            ax.add_patch(PathPatch(dots, fill=False, ec=colour, lw=2.6, capstyle="round", alpha=alpha))


def _crosses(ax: Axes, x: Floats, y: Floats, across: LogScale, up: LogScale) -> None:
    """Draw flips as one path."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    first, _ = _thinned(x, y, across, up, coarser=2)
    if len(first) == 0:
        return
    arms = np.array([(-1, -1), (1, 1), (-1, 1), (1, -1)]) * 0.007
    span = np.array([across.ends[1] - across.ends[0], up.ends[1] - up.ends[0]])
    ends = np.stack([x[first], y[first]], axis=1)[:, None] + arms * span
    cross = Path(ends.reshape(-1, 2), [Path.MOVETO, Path.LINETO] * (2 * len(first)))
    ax.add_patch(PathPatch(cross, fill=False, ec=COLOUR["fail"], lw=1.2, capstyle="round"))


def _thinned(
    x: Floats, y: Floats, across: LogScale, up: LogScale, coarser: int = 1
) -> tuple[Indices, Indices]:
    """Return the first point of every cell that has any, and how many each has."""
    cell = [
        np.floor((v - s.ends[0]) / (s.ends[1] - s.ends[0]) * (n // coarser)).astype(int)
        for v, s, n in ((x, across, CELLS[0]), (y, up, CELLS[1]))
    ]
    _, first, count = np.unique(cell[0] * CELLS[1] + cell[1], return_index=True, return_counts=True)
    return first, count
