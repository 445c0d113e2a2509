"""Pages of many kinds of report, and a parser that checks their HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from html.parser import HTMLParser

import numpy as np

from robust_export.recipe.schema import Threat
from robust_export.verification.report.html import render
from robust_export.verification.results import (
    InputDifferences,
    LogitDifferences,
    PlotData,
    Report,
    SanityCheck,
    WorstCase,
)
from tests.verification import reports

VOID = {"meta", "img", "br"}
HOSTILE = "</style><script>alert(1)</script> \"'&{{ 7 * 7 }}"


@dataclass
class Page(HTMLParser):
    """Tags and text of a page. Raises AssertionError if a tag is not closed where it should be."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.text = " ".join(self.text.split())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += f"{data} "

    def all(self, *tags: str) -> Iterator[tuple[str, dict[str, str | None]]]:
        return ((tag, attrs) for tag, attrs in self.tags if tag in tags)


def twelve() -> Report:
    """Return a report of 12 artifacts with long paths, 1,000 classes, and an artifact that was not run."""
    paths = [f"/home/somebody/exported/a_rather_long_folder_name/r18_{i:02d}.onnx" for i in range(12)]
    artifacts = [reports.artifact(file=path, fused=i, max_abs=1e-6 * 2**i) for i, path in enumerate(paths)]
    labels = [f"n{i:08d}, some kind of thing that has a long name" for i in range(1000)]
    return reports.report(artifacts, labels=labels, not_run={"model.engine": "TensorRT is not installed"})


def bare() -> Report:
    """Return a report without any optional content."""
    random = LogitDifferences(0.0, 0, 0.0, 0)
    item = reports.artifact(
        layer_errors=[], latency={}, curve=[], attacks={}, budgets={}, parity={}, sha256=None, bytes=None,
        worst_case=WorstCase(0.0, 0, 0.0, 0, random, 0.0), precision="unknown", file="http://host/v2/models/m",
    )  # fmt: skip
    reference = reports.reference(curve=[], checks=[], attacks={}, budgets={})
    return reports.report(
        [replace(item, checks=[])], reference=reference, plot_data=PlotData(), provenance={}, seconds={},
        command="", labels=[],
    )  # fmt: skip


def infinite() -> Report:
    """Return a report of an artifact with non-finite logits."""
    huge = float(np.finfo(np.float64).max)
    item = reports.artifact()
    bad = replace(item.parity["clean"], max_abs=huge, mean_abs=huge, cosine=-1.0, non_finite=3)
    worst = replace(item.worst_case, max_abs=huge, flips=1)
    item = replace(item, parity={"clean": bad}, worst_case=worst, verdict="fail", reasons=["not finite"])
    values = np.array([0.0, 1e-320, 1e-6, huge, np.inf])
    search = InputDifferences(values[::-1].copy(), values, np.array([False, True, False, True, False]))
    kinds = {"clean": values, "noise": np.zeros(4), "adversarial": np.full(3, huge)}
    data = PlotData(search={item.title: search}, max_abs={item.title: kinds})
    return reports.report([item], plot_data=data)


def undecided() -> Report:
    return reports.report([reports.artifact(), reports.artifact(fused=17, lost=0, verdict="undecided")])


def hostile() -> Report:
    """Return a report whose texts are HTML, script and template syntax."""
    item = reports.artifact(file=HOSTILE, reasons=[HOSTILE], notes=[HOSTILE], verdict="fail")
    item = replace(item, checks=[SanityCheck(HOSTILE, "warn", HOSTILE)], latency={HOSTILE: 1.0})
    item = replace(item, layer_errors=[replace(item.layer_errors[1], site=HOSTILE)])
    return reports.report(
        [item], model=HOSTILE, labels=[HOSTILE] * 10, command=HOSTILE, provenance={HOSTILE: {"a": HOSTILE}},
        not_run={HOSTILE: HOSTILE}, reference=reports.reference(flags=[HOSTILE], attacks={HOSTILE: 0.5}),
    )  # fmt: skip


CASES: dict[str, Callable[[], Report]] = {
    "fail": reports.report, "twelve": twelve, "bare": bare, "infinite": infinite, "undecided": undecided,
    "pass": lambda: reports.report(reports.three_artifacts()[:2]), "none": lambda: reports.report([]),
    "hostile": hostile, "eps 0": lambda: reports.report(threat=Threat("L2", 0.0)),
}  # fmt: skip


@cache
def page_of(case: str) -> Page:
    """Return the page of a case."""
    return Page(render(CASES[case]()))
