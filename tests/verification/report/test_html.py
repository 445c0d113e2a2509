"""report.html: every figure is there, for every report there can be, and nothing in it is anybody else's."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import matplotlib as mpl
import pytest

from robust_export.verification.report.entries import hidden
from robust_export.verification.report.html import render
from robust_export.verification.results import SanityCheck, Searched, WorstCase, title
from tests.verification import reports
from tests.verification.report.pages import CASES, HOSTILE, Page, of


@pytest.fixture(scope="module", params=CASES)
def page(request: pytest.FixtureRequest) -> Page:
    return of(request.param)


def test_the_page_is_alone(page: Page) -> None:
    assert not list(page.all("script", "link", "iframe", "object", "base", "form"))
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            if name in attributes:
                assert re.match(r"data:image/png;base64,|#", attributes[name] or ""), (tag, attributes)
    assert "@import" not in page.html
    assert set(re.findall(r"url\((.)", page.html)) <= {"#"}


def test_ids_are_unique_and_references_lead_to_one(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = re.findall(r"(?:href=\"|url\()#([^\")]+)", page.html)
    named = [attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes]
    assert set(links) | set(named) <= set(ids)


def test_the_page_can_be_heard(page: Page) -> None:
    for landmark in ("header", "main", "footer", "h1", "nav"):
        assert len(list(page.all(landmark))) == 1
    levels = [int(tag[1]) for tag, _ in page.all("h1", "h2", "h3", "h4")]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(attributes.get("scope") for _, attributes in page.all("th"))
    assert all(attributes.get("alt") for _, attributes in page.all("img"))
    assert all(a.get("aria-label") and a.get("role") == "img" for _, a in page.all("svg"))
    assert len(list(page.all("figure"))) == len(list(page.all("figcaption")))


def test_nothing_absent_is_spelt_out(page: Page) -> None:
    assert not re.search(r"\b(None|nan|inf|Undefined|\[\]|\{\})\b", page.text)
    assert "e+308" not in page.text


def test_the_page_is_not_large(page: Page) -> None:
    assert len(page.html) < 1_000_000


def test_sections_stand_in_order() -> None:
    sections = re.findall(r"<h2 id=\"(\w+)\"", of("fail").html)
    assert sections == [
        "artifacts", "radius", "parity", "worst", "attacks", "guards", "images", "drift", "notes", "origin",
        "reading",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "word", "sentence"),
    [
        ("pass", "PASS", r"All 2 artifacts are as robust .* at most 0\.5% of robust .* 2\.0% is allowed"),
        ("fail", "FAIL", r"1 of 3 artifacts is not what was trained: .* \(2 passed\)\. Do not use it: C\."),
        ("undecided", "UNDECIDED", r"too few images .*: B \(1 passed\)\."),
        ("twelve", "UNDECIDED", r"not everything was \(all passed; 1 could not be run here\)"),
        ("infinite", "FAIL", r"The artifact is not what was trained: it breaks at least one gate\. Do not"),
        ("none", "UNDECIDED", r"No artifact was judged"),
    ],
)
def test_the_verdict_comes_first_and_says_what_it_means(case: str, word: str, sentence: str) -> None:
    page = of(case)
    assert f"<title>{word}: " in page.html
    start = page.text.split("Clean accuracy of the source")[0]
    assert f" {word} " in start
    assert re.search(sentence, start)


def test_a_reason_stands_under_the_verdict_of_its_artifact() -> None:
    report = reports.report()
    start = of("fail").text.split("Clean accuracy of the source")[0]
    before, after = start.split(title(report.artifacts[2]))
    assert title(report.artifacts[0]) not in start
    assert report.artifacts[2].reasons
    for reason in report.artifacts[2].reasons:
        assert reason in after
        assert reason not in before


def test_figures_of_the_report_are_on_the_page() -> None:
    text = of("fail").text
    for figure in (
        "91.2% 95% interval 89.3% to 92.8%", "eps 0.0314 (8/255)", "1,000", "17 of 17 fused, 44.7 MB",
        "41.6% 38.6% to 44.7%", "7.1% 4.9% to 9.2% allowed 2.0%", "3.41 allowed 3.17", "2.9 allowed 2.05",
        "2.31 ms batch 1", "87.1 ms batch 64", "apgd-ce", "BPDA", "queries 5,000", "1 − 7e-12",  # noqa: RUF001
        "30 min 34 s", "robust-export verify --model r18_sparta --samples 1000", reports.DIGEST,
        "layer4.1.act2", "position in the batch", "AMD EPYC", "difference × 10",  # noqa: RUF001
    ):  # fmt: skip
        assert figure in text, figure


def test_warnings_stand_above_the_table_of_guards_and_in_the_verdict() -> None:
    text = of("fail").text
    guards = text.split("Guards: checks")[1]
    assert guards.index("WARN") < guards.index("outcome")
    assert "2 checks against fooling ourselves" in text.split("Samples")[0]
    everything = reports.report(
        [
            reports.artifact(
                guards=[
                    SanityCheck("z", "warn", "w"),
                    SanityCheck("a", "fail", "f"),
                    SanityCheck("b", "ok", "o"),
                ]
            )
        ]
    )
    rows = re.findall(r"<b class=\"(\w+)\">\w+</b></td>", render(everything).split("All guards")[1])
    assert rows == ["warn", "ok", "ok", "ok"] + ["fail", "warn"] + ["ok"] * 5


def test_random_inputs_hide_flips() -> None:
    worst = WorstCase(2.0, 7, 0.5, 100, Searched(0.5, 0, 0.0, 100), 0.1)
    assert "hide a gap 4 times as large as the one they show and 7 of 7 flips" in hidden(worst)
    assert "hide nothing" in hidden(replace(worst, flips=0, max_abs=0.5))
    assert "hide the whole gap." in hidden(replace(worst, flips=0, random=Searched(0.0, 0, 0.0, 100)))


def test_hostile_names_stay_text() -> None:
    page = of("hostile")
    assert page.html.count("</style>") == 1
    assert " ".join(HOSTILE.split()) in page.text
    assert "49" not in page.text.split("Clean accuracy")[0]


def test_the_same_report_gives_the_same_page_whatever_matplotlib_was_told() -> None:
    first = of("fail").html
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        told = dict(mpl.rcParams)
        assert render(reports.report()) == first
        assert dict(mpl.rcParams) == told


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never() -> None:
    code = (
        "import sys; import robust_export.verification.report as page; "
        "assert 'matplotlib' not in sys.modules; "
        "from tests.verification import reports; page.render(reports.report()); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
