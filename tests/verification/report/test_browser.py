"""report.html in Chromium: on a phone, and printed. Skipped if no browser is installed."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path

import pdfplumber
import pytest

from tests.serving.ui.browser import find_browser
from tests.verification.report.pages import page_of

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
MARGIN = 25  # points, smallest margin of an A4 page

# Measures the page in an iframe; the page itself has no script.
WRAPPER = """<!doctype html><meta charset="utf-8">
<iframe style="width: {width}px; height: 800px; border: 0; color-scheme: {scheme}" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const cut = [...page.querySelectorAll("svg text")].filter(text => {{
    const [inner, outer] = [text, text.closest("svg")].map(e => e.getBoundingClientRect());
    return inner.left < outer.left - 2 || inner.right > outer.right + 2;
  }});
  const sizes = [...page.querySelectorAll("svg.chart")].map(e => e.getBoundingClientRect().width / 360 * 11);
  document.body.textContent = "MEASURED" + JSON.stringify({{
    width: root.clientWidth, content: root.scrollWidth, cut: cut.map(text => text.textContent),
    smallest: Math.min(...sizes), background: getComputedStyle(page.body).backgroundColor,
  }}) + "END";
}};
</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    return find_browser()


def run(browser: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [browser, *QUIET, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.parametrize(("case", "scheme"), [("fail", "dark"), ("twelve", "light"), ("hostile", "light")])
def test_page_fits_a_phone(browser: str, tmp_path: Path, case: str, scheme: str) -> None:
    file = tmp_path / "wrapper.html"
    file.write_text(WRAPPER.format(width=360, scheme=scheme, page=html.escape(page_of(case).html)), "utf-8")
    done = run(browser, tmp_path, "--enable-logging=stderr", "--v=0", "--dump-dom", file.as_uri())
    measured = re.search(r"MEASURED(.*)END</body>", done.stdout)
    assert measured, done.stderr
    measured_values = json.loads(html.unescape(measured[1]))
    assert measured_values["width"] == 360
    assert measured_values["content"] <= 360
    assert measured_values["cut"] == []
    assert measured_values["smallest"] >= 9  # CSS pixels, of a chart's text
    assert measured_values["background"] == ("rgb(19, 22, 26)" if scheme == "dark" else "rgb(255, 255, 255)")
    assert "CONSOLE" not in done.stderr


def test_page_causes_no_console_messages(browser: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page_of("fail").html, "utf-8")
    done = run(browser, tmp_path, "--enable-logging=stderr", "--v=0", "--dump-dom", file.as_uri())
    assert "How to read this" in done.stdout
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize("case", ["fail", "twelve"])
def test_printed_page_is_complete(browser: str, tmp_path: Path, case: str) -> None:
    file, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    file.write_text(page_of(case).html, "utf-8")
    run(browser, tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer", file.as_uri())
    assert paper.read_bytes().startswith(b"%PDF")
    with pdfplumber.open(paper) as pdf:
        words = [word for page in pdf.pages for word in page.extract_words()]
        width = float(pdf.pages[0].width)
    text = " ".join(word["text"] for word in words)
    for heading in re.findall(r"<h2 id=[^>]*>([^<]*)</h2>", page_of(case).html):
        assert html.unescape(heading) in text
    assert words[0]["height"] > 12  # points: the heading was not shrunk to fit a wide page
    assert 594 < width < 597  # A4
    assert min(word["x0"] for word in words) >= MARGIN
    assert max(word["x1"] for word in words) <= width - MARGIN
