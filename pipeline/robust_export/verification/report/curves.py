"""Curves: robust accuracy by radius, and drift by depth. The legend, and what is what, is the page's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from robust_export.recipe.schema import Threat
from robust_export.verification.report.entries import Entry
from robust_export.verification.report.scale import LogScale
from robust_export.verification.report.svg import COLOUR, draw
from robust_export.verification.report.wording import of_255
from robust_export.verification.results import CurvePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "os^DvP"  # with six colours: 36 artifacts that are told apart
DASH = 3.0  # line widths
ALIKE = 0.01  # curves nowhere further apart than this are drawn in turns
HEIGHT = 250  # in CSS pixels


def accuracy(source: Sequence[CurvePoint], entries: Sequence[Entry], threat: Threat) -> Markup:
    """Draw robust accuracy against eps: the source as a band, every artifact as a line on it."""
    unit, name = _unit(threat)

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        ax.plot(
            [p.eps * unit for p in source], [p.accuracy for p in source], color=COLOUR["band"], lw=8,
            solid_capstyle="round", solid_joinstyle="round",
        )  # fmt: skip
        curves = [({p.eps * unit: p.accuracy for p in e.item.curve}, e) for e in entries]
        _lines(ax, curves)
        _threat(ax, threat.eps * unit)
        ax.set(xlabel=name, ylabel="robust accuracy", ylim=(-0.02, 1.02), xlim=(0, None))
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])

    return draw("accuracy", "Robust accuracy against the radius of the attack", HEIGHT, plot)


def loss(source: Sequence[CurvePoint], entries: Sequence[Entry], threat: Threat, max_drop: float) -> Markup:
    """Draw what every artifact lost against the source, in points of accuracy, at each eps."""
    unit, name = _unit(threat)
    ours = {p.eps: p.accuracy for p in source}

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        ax.axhline(0, color=COLOUR["band"], lw=8)
        curves = [
            ({p.eps * unit: 100 * (ours[p.eps] - p.accuracy) for p in e.item.curve if p.eps in ours}, e)
            for e in entries
        ]
        _lines(ax, curves, 0.1)
        _threat(ax, threat.eps * unit)
        ax.plot(
            [threat.eps * unit], [100 * max_drop], marker="_", ms=16, mew=2, color=COLOUR["fail"], ls="none"
        )
        ax.set(xlabel=name, ylabel="lost, in points of accuracy", xlim=(0, None))
        most = max([abs(y) for curve, _ in curves for y in curve.values()] + [100 * max_drop])
        least = min([y for curve, _ in curves for y in curve.values()] + [0.0])
        ax.set_ylim(min(1.3 * least, -0.3 * most), 1.3 * most)

    return draw("loss", "Accuracy lost against the source, by the radius of the attack", HEIGHT, plot)


def drift(entries: Sequence[Entry], sites: Sequence[str]) -> Markup:
    """Draw every artifact's drift along the network's activations, `sites` in order."""
    place = {site: float(i + 1) for i, site in enumerate(sites)}
    scale = LogScale(*([d.drift for d in e.item.drift] for e in entries))

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        curves = []
        for entry in entries:
            heights = scale.place([d.drift for d in entry.item.drift]).tolist()
            places = [place[d.site] for d in entry.item.drift]
            curves.append((dict(zip(places, heights, strict=True)), entry))
        _lines(ax, curves, 0.02)
        scale.apply(ax, horizontal=False)
        ax.set(xlabel="activation, first to last", ylabel="relative drift", xlim=(0.5, len(sites) + 0.5))
        step = max(1, -(-len(sites) // 12))
        ax.set_xticks(range(1, len(sites) + 1, step))

    return draw("drift", "Drift of every activation's plane, by depth", HEIGHT, plot)


def _unit(threat: Threat) -> tuple[float, str]:
    """Return the unit of the axis of eps: grey levels where the threat is stated in them."""
    if threat.norm == "Linf" and of_255(threat.eps):
        return 255, "eps, in 255ths (Linf)"
    return 1, f"eps ({threat.norm})"


def _threat(ax: Axes, eps: float) -> None:
    ax.axvline(eps, color=COLOUR["muted"], lw=1, dashes=(4, 3), zorder=0)
    ax.annotate(
        "threat", (eps, 1), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
        va="top", color=COLOUR["muted"],
    )  # fmt: skip


def _lines(ax: Axes, curves: Sequence[tuple[dict[float, float], Entry]], alike: float = ALIKE) -> None:
    """Draw curves; those that coincide take turns in dashes, so that each stays visible."""
    for at, (curve, entry) in enumerate(curves):
        same = [i for i, (other, _) in enumerate(curves) if _coincide(curve, other, alike)]
        turn, turns = same.index(at), len(same)
        style: Any = "-" if turns == 1 else ((turns - turn) * DASH, (DASH, DASH * (turns - 1)))
        ax.plot(
            list(curve), list(curve.values()), color=COLOUR[f"c{entry.colour}"], lw=2, ls=style,
            dash_capstyle="butt", marker=MARKERS[(at + at // len(MARKERS)) % len(MARKERS)], ms=5,
            markevery=(turn % max(len(curve), 1), turns),
        )  # fmt: skip


def _coincide(one: Mapping[float, float], other: Mapping[float, float], alike: float) -> bool:
    return one.keys() == other.keys() and all(abs(one[x] - other[x]) <= alike for x in one)
