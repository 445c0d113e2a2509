"""report.html: one self-contained page without scripts or external links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from robust_export.verification.report import curves, entries, formats, histograms, images, sentences
from robust_export.verification.report.entries import Entry
from robust_export.verification.results import Report

TEMPLATES = Path(__file__).parent / "templates"
ATTACKS = {"transfer": "transfer", "bpda": "BPDA", "square": "Square", "worst_case": "worst case"}
FILTERS = (
    formats.percent, formats.points, formats.interval, formats.number, formats.cosine, formats.size,
    formats.latency, formats.duration, formats.radius, formats.listing, formats.rows, entries.severe_first,
)  # fmt: skip


def render(report: Report) -> str:
    """Return the page as HTML. Equal reports give equal pages."""
    shown = entries.make_entries(report)
    examples, factor = images.prepare(report.plot_data.examples, report.labels, shown)
    reference = report.reference
    page: str = (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            reference=reference,
            entries=shown,
            verdict=report.verdict,
            sentence=sentences.verdict_sentence(report, shown),
            failed_checks=entries.failed_checks(report, shown),
            search_sentence=sentences.search_sentence,
            attacks=_attacks(shown),
            radii=sorted({p.eps for p in reference.curve} | {p.eps for e in shown for p in e.item.curve}),
            sites=_sites(shown),
            examples=examples,
            factor=factor,
            max_side=images.MAX_SIDE,
            charts=_charts(report, shown),
            NONE=formats.NONE,
        )
    )
    return page


def _charts(report: Report, shown: list[Entry]) -> dict[str, Any]:
    """Return the charts that there is data for."""
    data, curve = report.plot_data, report.reference.curve
    charts: dict[str, Any] = {"histograms": {}, "scatter": {}}
    if curve or any(e.item.curve for e in shown):
        charts["accuracy"] = curves.accuracy(curve, shown, report.threat)
    if curve and any(e.item.curve for e in shown):
        charts["drop"] = curves.drop(curve, shown, report.threat, shown[0].criteria.max_drop)
    for entry in shown:
        kinds = {kind: values for kind, values in data.max_abs.get(entry.title, {}).items() if len(values)}
        if kinds:
            charts["histograms"][entry.letter] = histograms.histograms(entry, kinds)
        inputs = data.search.get(entry.title)
        if inputs is not None and len(inputs.max_abs):
            charts["scatter"][entry.letter] = histograms.scatter(entry, inputs)
    if sites := _sites(shown):
        charts["layers"] = curves.layer_errors([e for e in shown if e.item.layer_errors], sites)
    return charts


def _attacks(shown: list[Entry]) -> dict[str, str]:
    """Return the display names of the attacks on artifacts, in the order in which they ran."""
    keys = dict.fromkeys(key for entry in shown for key in entry.item.attacks)
    return {key: ATTACKS.get(key, key) for key in keys}


def _sites(shown: list[Entry]) -> list[str]:
    """Return the activations of all artifacts, in the network's order."""
    return list(dict.fromkeys(layer.site for entry in shown for layer in entry.item.layer_errors))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {function.__name__: function for function in FILTERS}
    return environment
