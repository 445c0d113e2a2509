"""report.html: one page that shows a verification to people, and needs nothing else to be read.

The verdict comes first, then what it rests on. No script, no address elsewhere; light, dark, narrow, printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from robust_export.verification.report import curves, entries, images
from robust_export.verification.report import histograms as gaps
from robust_export.verification.report import wording as words
from robust_export.verification.report.entries import Entry
from robust_export.verification.results import Report

ATTACKS = {"transfer": "transfer", "bpda": "BPDA", "square": "Square", "worst_case": "worst case"}
FILTERS = (
    words.percent, words.points, words.interval, words.number, words.cosine, words.size, words.latency,
    words.duration, words.radius, words.some, words.facts, entries.severe_first,
)  # fmt: skip


def render(report: Report) -> str:
    """Return the page of a report: HTML in one piece, the same for the same report."""
    shown = entries.entries(report)
    strip, factor = images.shown(report.pictures.examples, report.labels, shown)
    page: str = (
        _environment()
        .get_template("template.html")
        .render(
            report=report,
            source=report.source,
            entries=shown,
            verdict=report.verdict,
            sentence=entries.sentence(report, shown),
            warnings=entries.warnings(report, shown),
            hidden=entries.hidden,
            attacks=_attacks(shown),
            radii=sorted({p.eps for p in report.source.curve} | {p.eps for e in shown for p in e.item.curve}),
            sites=_sites(shown),
            strip=strip,
            factor=factor,
            exact=images.EXACT,
            charts=_charts(report, shown),
            NONE=words.NONE,
        )
    )
    return page


def _charts(report: Report, shown: list[Entry]) -> dict[str, Any]:
    """Return the charts that there is anything to draw in."""
    pictures, curve = report.pictures, report.source.curve
    drawn: dict[str, Any] = {"gaps": {}, "scatter": {}}
    if curve or any(e.item.curve for e in shown):
        drawn["accuracy"] = curves.accuracy(curve, shown, report.threat)
    if curve and any(e.item.curve for e in shown):
        drawn["loss"] = curves.loss(curve, shown, report.threat, shown[0].gates.max_drop)
    for entry in shown:
        kinds = {kind: values for kind, values in pictures.gaps.get(entry.title, {}).items() if len(values)}
        if kinds:
            drawn["gaps"][entry.letter] = gaps.gaps(entry, kinds)
        seen = pictures.points.get(entry.title)
        if seen is not None and len(seen.gap):
            drawn["scatter"][entry.letter] = gaps.scatter(entry, seen)
    if sites := _sites(shown):
        drawn["drift"] = curves.drift([e for e in shown if e.item.drift], sites)
    return drawn


def _attacks(shown: list[Entry]) -> dict[str, str]:
    """Return the attacks on artifacts, in the order in which they ran, and their names for people."""
    keys = dict.fromkeys(key for entry in shown for key in entry.item.attacks)
    return {key: ATTACKS.get(key, key) for key in keys}


def _sites(shown: list[Entry]) -> list[str]:
    """Return the activations of all artifacts, in the network's order."""
    return list(dict.fromkeys(drift.site for entry in shown for drift in entry.item.drift))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {function.__name__: function for function in FILTERS}
    return environment
