"""Charts of logit differences: histograms, and difference against margin in the worst-case search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from robust_export.verification.report.entries import Entry
from robust_export.verification.report.formats import number
from robust_export.verification.report.scale import LogScale
from robust_export.verification.report.svg import COLOUR, draw
from robust_export.verification.results import Floats, InputDifferences

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BIN = 0.125  # width, in decades
CELLS = (110, 80)  # grid of the scatter plot, which shows one point per cell
PANEL_HEIGHT, AXIS_HEIGHT, SCATTER_HEIGHT = 73, 60, 290  # in CSS pixels

Indices = npt.NDArray[np.intp]


def histograms(entry: Entry, kinds: Mapping[str, Floats]) -> Markup:
    """Draw a histogram of logit differences for each kind of input, in red above the limit."""
    limit = entry.criteria.max_abs
    scale = LogScale(*kinds.values(), limit)

    def plot(figure: Figure) -> None:
        axes = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (kind, values) in zip(axes, kinds.items(), strict=True):
            most = _histogram(
                ax, scale.positions(values), float(scale.positions(limit)), scale, f"c{entry.colour}"
            )
            ax.set(title=kind, ylim=(0, 1.05 * most), yticks=[0, most])
            scale.apply(ax, horizontal=True)
        axes[-1].set_xlabel("max abs difference of the logits, per input")

    label = f"Histograms of max abs difference of artifact {entry.letter}, at most {number(limit)} is allowed"
    return draw(f"histograms-{entry.letter}", label, AXIS_HEIGHT + PANEL_HEIGHT * len(kinds), plot)


def scatter(entry: Entry, inputs: InputDifferences) -> Markup:
    """Draw max abs difference against margin of the inputs that the worst-case search visited."""
    criteria = entry.criteria
    across = LogScale(inputs.margin, criteria.max_flip_margin)
    up = LogScale(inputs.max_abs, criteria.max_abs)

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        across.apply(ax, horizontal=True)
        up.apply(ax, horizontal=False)
        x, y = across.positions(inputs.margin), up.positions(inputs.max_abs)
        (left, right), (bottom, top) = across.ends, up.ends
        # A flip needs a difference of margin / 2: each of two logits changes by one difference at most.
        edge = np.array([left, right])
        ax.fill_between(
            edge, edge - np.log10(2), np.full(2, top + right - left), color=COLOUR["fail"], alpha=0.08, lw=0
        )
        ax.plot(edge, edge - np.log10(2), color=COLOUR["ink"], lw=1, dashes=(1, 1.5))
        ax.axhline(float(up.positions(criteria.max_abs)), color=COLOUR["fail"], lw=1.2, dashes=(5, 2))
        ax.axvline(
            float(across.positions(criteria.max_flip_margin)), color=COLOUR["fail"], lw=1.2, dashes=(5, 2)
        )
        _cloud(ax, x[~inputs.flipped], y[~inputs.flipped], across, up, COLOUR[f"c{entry.colour}"])
        _crosses(ax, x[inputs.flipped], y[inputs.flipped], across, up)
        if len(y):
            ax.plot(x[y.argmax()], y.max(), "o", mfc="none", mec=COLOUR["ink"], ms=9, mew=1.2, clip_on=False)
        ax.set(
            xlabel="margin of the reference model (top-2)", ylabel="max abs difference", xlim=(left, right),
            ylim=(bottom, top),
        )  # fmt: skip

    flips = int(inputs.flipped.sum())
    label = (
        f"Max abs difference against margin in the worst-case search of artifact {entry.letter}: "
        f"{flips:,} flips shown"
    )
    return draw(f"scatter-{entry.letter}", label, SCATTER_HEIGHT, plot)


def _histogram(ax: Axes, positions: Floats, limit: float, scale: LogScale, colour: str) -> int:
    """Draw a histogram of positions on the scale, with a bin edge at the limit; return the largest count."""
    first = limit - BIN * np.ceil((limit - scale.low) / BIN)
    edges = np.arange(first, scale.high + 2 * BIN, BIN)
    apart = [-1.35 + scale.low, -0.65 + scale.low, 0.65 + scale.high, 1.35 + scale.high]
    inside, _ = np.histogram(positions, edges)
    beyond = edges[:-1] >= limit - BIN / 2
    zeros = int((positions < scale.low - 0.5).sum())
    infinities = int((positions > scale.high + 0.5).sum())
    ax.stairs(np.where(beyond, 0, inside), edges, fill=True, color=COLOUR[colour])
    ax.stairs(np.where(beyond, inside, 0), edges, fill=True, color=COLOUR["fail"])
    if scale.zero:
        ax.stairs([zeros], apart[:2], fill=True, color=COLOUR[colour])
    if scale.infinity:
        ax.stairs([infinities], apart[2:], fill=True, color=COLOUR["fail"])
    ax.axvline(limit, color=COLOUR["fail"], lw=1.2, dashes=(5, 2))
    return max(int(inside.max()), zeros, infinities, 1)


def _cloud(ax: Axes, x: Floats, y: Floats, across: LogScale, up: LogScale, colour: str) -> None:
    """Draw points as one path for each of three densities, dense cells darker."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    first, count = _thinned(x, y, across, up)
    for low, high, alpha in ((1, 2, 0.35), (2, 10, 0.6), (10, np.inf, 0.95)):
        chosen = first[(count >= low) & (count < high)]
        if len(chosen):
            ends = np.repeat(np.stack([x[chosen], y[chosen]], axis=1), 2, axis=0)
            dots = Path(ends, [Path.MOVETO, Path.LINETO] * len(chosen))  # zero-length lines with round caps
            ax.add_patch(PathPatch(dots, fill=False, ec=colour, lw=2.6, capstyle="round", alpha=alpha))


def _crosses(ax: Axes, x: Floats, y: Floats, across: LogScale, up: LogScale) -> None:
    """Draw flips as crosses, in one path."""
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
    """Return the first point of every cell of the grid, and how many points each has."""
    cell = [
        np.floor((v - s.ends[0]) / (s.ends[1] - s.ends[0]) * (n // coarser)).astype(int)
        for v, s, n in ((x, across, CELLS[0]), (y, up, CELLS[1]))
    ]
    _, first, count = np.unique(cell[0] * CELLS[1] + cell[1], return_index=True, return_counts=True)
    return first, count
