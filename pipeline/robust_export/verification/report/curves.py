"""Line charts: robust accuracy by radius, and per-layer error by depth. The page has the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from robust_export.recipe.schema import Threat
from robust_export.verification.report.entries import Entry
from robust_export.verification.report.formats import numerator_of_255
from robust_export.verification.report.scale import LogScale
from robust_export.verification.report.svg import COLOUR, draw
from robust_export.verification.results import CurvePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "os^DvP"  # 36 combinations with six colours
DASH = 3.0  # length, in line widths
TOLERANCE = 0.01  # curves nowhere further apart are drawn as alternating dashes
HEIGHT = 250  # in CSS pixels


def accuracy(reference: Sequence[CurvePoint], entries: Sequence[Entry], threat: Threat) -> Markup:
    """Draw robust accuracy against eps: the reference model as a wide band, each artifact as a line."""
    unit, name = _unit(threat)

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        ax.plot(
            [p.eps * unit for p in reference], [p.accuracy for p in reference], color=COLOUR["band"], lw=8,
            solid_capstyle="round", solid_joinstyle="round",
        )  # fmt: skip
        curves = [({p.eps * unit: p.accuracy for p in e.item.curve}, e) for e in entries]
        _lines(ax, curves)
        _threat(ax, threat.eps * unit)
        ax.set(xlabel=name, ylabel="robust accuracy", ylim=(-0.02, 1.02), xlim=(0, None))
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])

    return draw("accuracy", "Robust accuracy against the radius of the attack", HEIGHT, plot)


def drop(
    reference: Sequence[CurvePoint], entries: Sequence[Entry], threat: Threat, max_drop: float
) -> Markup:
    """Draw the drop of accuracy from the reference model to each artifact, in percentage points."""
    unit, name = _unit(threat)
    expected = {p.eps: p.accuracy for p in reference}

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        ax.axhline(0, color=COLOUR["band"], lw=8)
        curves = [
            ({eps * unit: 100 * drop for eps, drop in _drops(expected, e.item.curve).items()}, e)
            for e in entries
        ]
        _lines(ax, curves, 0.1)
        _threat(ax, threat.eps * unit)
        ax.plot(
            [threat.eps * unit], [100 * max_drop], marker="_", ms=16, mew=2, color=COLOUR["fail"], ls="none"
        )
        ax.set(xlabel=name, ylabel="drop, in percentage points", xlim=(0, None))
        most = max([abs(y) for curve, _ in curves for y in curve.values()] + [100 * max_drop])
        least = min([y for curve, _ in curves for y in curve.values()] + [0.0])
        ax.set_ylim(min(1.3 * least, -0.3 * most), 1.3 * most)

    label = "Drop of accuracy from the reference model, by the radius of the attack"
    return draw("drop", label, HEIGHT, plot)


def _drops(expected: Mapping[float, float], curve: Sequence[CurvePoint]) -> dict[float, float]:
    """Return the drop of accuracy by eps, at the radii that `expected` has."""
    return {p.eps: expected[p.eps] - p.accuracy for p in curve if p.eps in expected}


def layer_errors(entries: Sequence[Entry], sites: Sequence[str]) -> Markup:
    """Draw each artifact's per-layer error against the number of the activation in `sites`."""
    numbers = {site: float(i + 1) for i, site in enumerate(sites)}
    scale = LogScale(*([layer.error for layer in e.item.layer_errors] for e in entries))

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        curves = []
        for entry in entries:
            heights = scale.positions([layer.error for layer in entry.item.layer_errors]).tolist()
            columns = [numbers[layer.site] for layer in entry.item.layer_errors]
            curves.append((dict(zip(columns, heights, strict=True)), entry))
        _lines(ax, curves, 0.02)
        scale.apply(ax, horizontal=False)
        ax.set(xlabel="activation, first to last", ylabel="relative error", xlim=(0.5, len(sites) + 0.5))
        step = max(1, -(-len(sites) // 12))
        ax.set_xticks(range(1, len(sites) + 1, step))

    return draw("layers", "Per-layer error, by depth", HEIGHT, plot)


def _unit(threat: Threat) -> tuple[float, str]:
    """Return factor and label of the eps axis: in 255ths if the threat's eps is a multiple of 1/255."""
    if threat.norm == "Linf" and numerator_of_255(threat.eps):
        return 255, "eps, in 255ths (Linf)"
    return 1, f"eps ({threat.norm})"


def _threat(ax: Axes, eps: float) -> None:
    ax.axvline(eps, color=COLOUR["muted"], lw=1, dashes=(4, 3), zorder=0)
    ax.annotate(
        "threat", (eps, 1), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
        va="top", color=COLOUR["muted"],
    )  # fmt: skip


def _lines(
    ax: Axes, curves: Sequence[tuple[dict[float, float], Entry]], tolerance: float = TOLERANCE
) -> None:
    """Draw curves; curves that coincide become alternating dashes, so that each stays visible."""
    for at, (curve, entry) in enumerate(curves):
        same = [i for i, (other, _) in enumerate(curves) if _coincide(curve, other, tolerance)]
        turn, turns = same.index(at), len(same)
        style: Any = "-" if turns == 1 else ((turns - turn) * DASH, (DASH, DASH * (turns - 1)))
        ax.plot(
            list(curve), list(curve.values()), color=COLOUR[f"c{entry.colour}"], lw=2, ls=style,
            dash_capstyle="butt", marker=MARKERS[(at + at // len(MARKERS)) % len(MARKERS)], ms=5,
            markevery=(turn % max(len(curve), 1), turns),
        )  # fmt: skip


def _coincide(one: Mapping[float, float], other: Mapping[float, float], tolerance: float) -> bool:
    return one.keys() == other.keys() and all(abs(one[x] - other[x]) <= tolerance for x in one)
