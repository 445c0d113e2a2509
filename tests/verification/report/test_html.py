"""report.html: complete, self-contained, accessible and escaped, for many kinds of report."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import matplotlib as mpl
import pytest

from robust_export.verification.report.html import render
from robust_export.verification.report.sentences import search_sentence
from robust_export.verification.results import LogitDifferences, SanityCheck, WorstCase
from tests.verification import reports
from tests.verification.report.pages import CASES, HOSTILE, Page, page_of


@pytest.fixture(scope="module", params=CASES)
def page(request: pytest.FixtureRequest) -> Page:
    return page_of(request.param)


def test_page_is_self_contained(page: Page) -> None:
    assert not list(page.all("script", "link", "iframe", "object", "base", "form"))
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            if name in attributes:
                assert re.match(r"data:image/png;base64,|#", attributes[name] or ""), (tag, attributes)
    assert "@import" not in page.html
    assert set(re.findall(r"url\((.)", page.html)) <= {"#"}


def test_ids_are_unique_and_references_resolve(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = re.findall(r"(?:href=\"|url\()#([^\")]+)", page.html)
    named = [attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes]
    assert set(links) | set(named) <= set(ids)


def test_page_is_accessible(page: Page) -> None:
    for landmark in ("header", "main", "footer", "h1", "nav"):
        assert len(list(page.all(landmark))) == 1
    levels = [int(tag[1]) for tag, _ in page.all("h1", "h2", "h3", "h4")]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(attributes.get("scope") for _, attributes in page.all("th"))
    assert all(attributes.get("alt") for _, attributes in page.all("img"))
    assert all(a.get("aria-label") and a.get("role") == "img" for _, a in page.all("svg"))
    assert len(list(page.all("figure"))) == len(list(page.all("figcaption")))


def test_missing_values_are_not_printed(page: Page) -> None:
    assert not re.search(r"\b(None|nan|inf|Undefined|\[\]|\{\})\b", page.text)
    assert "e+308" not in page.text


def test_page_is_below_a_megabyte(page: Page) -> None:
    assert len(page.html) < 1_000_000


def test_order_of_sections() -> None:
    sections = re.findall(r"<h2 id=\"(\w+)\"", page_of("fail").html)
    assert sections == [
        "artifacts", "radius", "parity", "worst", "attacks", "checks", "images", "layers", "notes", "origin",
        "reading",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "word", "sentence"),
    [
        ("pass", "PASS", r"All 2 artifacts are as robust .* at most 0\.5% of robust .* 2\.0% is allowed"),
        ("fail", "FAIL", r"1 of 3 artifacts is not equivalent .* \(2 passed\)\. Do not use it: C\."),
        ("undecided", "UNDECIDED", r"too few images .*: B \(1 passed\)\."),
        ("twelve", "UNDECIDED", r"not all were run \(all passed; 1 could not be run on this machine\)"),
        ("infinite", "FAIL", r"The artifact is not equivalent .*: it fails at least one criterion\. Do not"),
        ("none", "UNDECIDED", r"No artifact was verified"),
    ],
)
def test_verdict_comes_first(case: str, word: str, sentence: str) -> None:
    page = page_of(case)
    assert f"<title>{word}: " in page.html
    start = page.text.split("Clean accuracy of the reference model")[0]
    assert f" {word} " in start
    assert re.search(sentence, start)


def test_reasons_are_listed_by_artifact() -> None:
    report = reports.report()
    start = page_of("fail").text.split("Clean accuracy of the reference model")[0]
    before, after = start.split(report.artifacts[2].title)
    assert report.artifacts[0].title not in start
    assert report.artifacts[2].reasons
    for reason in report.artifacts[2].reasons:
        assert reason in after
        assert reason not in before


def test_numbers_of_the_report_are_on_the_page() -> None:
    text = page_of("fail").text
    for expected in (
        "91.2% 95% interval 89.3% to 92.8%", "eps 0.0314 (8/255)", "1,000", "17 of 17 fused, 44.7 MB",
        "41.6% 38.6% to 44.7%", "7.1% 4.9% to 9.2% allowed 2.0%", "3.41 allowed 3.17", "2.9 allowed 2.05",
        "2.31 ms batch 1", "87.1 ms batch 64", "apgd-ce", "BPDA", "queries 5,000", "1 − 7e-12",  # noqa: RUF001
        "30 min 34 s", "robust-export verify --model r18_sparta --samples 1000", reports.DIGEST,
        "layer4.1.act2", "position in the batch", "AMD EPYC", "difference × 10",  # noqa: RUF001
    ):  # fmt: skip
        assert expected in text, expected


def test_failed_checks_come_first() -> None:
    text = page_of("fail").text
    checks = text.split(" Sanity checks ")[2]  # after the table of contents
    assert checks.index("WARN") < checks.index("outcome")
    assert "2 sanity checks" in text.split("Samples")[0]
    everything = reports.report(
        [
            reports.artifact(
                checks=[
                    SanityCheck("z", "warn", "w"),
                    SanityCheck("a", "fail", "f"),
                    SanityCheck("b", "ok", "o"),
                ]
            )
        ]
    )
    rows = re.findall(r"<b class=\"(\w+)\">\w+</b></td>", render(everything).split("All sanity checks")[1])
    assert rows == ["warn", "ok", "ok", "ok"] + ["fail", "warn"] + ["ok"] * 5


def test_search_sentence() -> None:
    worst = WorstCase(2.0, 7, 0.5, 100, LogitDifferences(0.5, 0, 0.0, 100), 0.1)
    assert "miss a difference 4 times as large as theirs and 7 of 7 flips" in search_sentence(worst)
    assert "miss nothing" in search_sentence(replace(worst, flips=0, max_abs=0.5))
    exact = LogitDifferences(0.0, 0, 0.0, 100)
    assert "miss the whole difference." in search_sentence(replace(worst, flips=0, random=exact))


def test_texts_are_escaped() -> None:
    page = page_of("hostile")
    assert page.html.count("</style>") == 1
    assert " ".join(HOSTILE.split()) in page.text
    assert "49" not in page.text.split("Clean accuracy")[0]


def test_page_does_not_depend_on_matplotlibrc() -> None:
    first = page_of("fail").html
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        parameters = dict(mpl.rcParams)
        assert render(reports.report()) == first
        assert dict(mpl.rcParams) == parameters


def test_matplotlib_is_imported_lazily_without_pyplot() -> None:
    code = (
        "import sys; import robust_export.verification.report.html as page; "
        "assert 'matplotlib' not in sys.modules; "
        "from tests.verification import reports; page.render(reports.report()); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
