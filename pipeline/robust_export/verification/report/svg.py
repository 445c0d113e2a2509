"""SVG charts inside the page: text stays text, colours are CSS variables, ids are unique in the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 360  # of a chart in CSS pixels; fits a phone without scaling the text
FONT = 11

# Placeholder colours: `_tag` replaces each by the CSS variable of that name, which differs in light and dark.
NAMES = ("ink", "muted", "line", "band", "bar", "fail", "pass", "c0", "c1", "c2", "c3", "c4", "c5")
COLOUR = {name: f"#0000{i + 1:02x}" for i, name in enumerate(NAMES)}

STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "axes.unicode_minus": False, "font.size": FONT,
    "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "savefig.edgecolor": "none",
    "text.color": COLOUR["ink"], "axes.labelcolor": COLOUR["ink"], "axes.edgecolor": COLOUR["muted"],
    "xtick.color": COLOUR["muted"], "ytick.color": COLOUR["muted"],
    "xtick.labelcolor": COLOUR["ink"], "ytick.labelcolor": COLOUR["ink"],
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": FONT, "axes.labelsize": FONT,
    "xtick.labelsize": FONT, "ytick.labelsize": FONT, "axes.titlelocation": "left",
    "path.simplify": False,
}  # fmt: skip


def draw(name: str, label: str, height: int, plot: Callable[[Figure], None]) -> Markup:
    """Return the chart that `plot` draws as an <svg> element.

    Args:
        name: unique in the page, the prefix of all ids.
        label: text for screen readers.
        height: in CSS pixels; the width is WIDTH.
    """
    import matplotlib.style  # not pyplot, which has global state
    from matplotlib.figure import Figure

    picture = StringIO()
    # after_reset: independent of the machine's matplotlibrc
    with matplotlib.style.context({**STYLE, "svg.hashsalt": name}, after_reset=True):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        plot(figure)
        figure.savefig(picture, format="svg", metadata={"Date": None})
    body = _reduce(picture.getvalue(), name)
    start = f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    return Markup(start + body + "</svg>")  # noqa: S704 - all text in it is escaped, by matplotlib or above


def _reduce(svg: str, name: str) -> str:
    """Return the content of matplotlib's <svg> without metadata, unused ids and empty groups."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', body))
    body = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], name, used), body)
    body = re.sub(r">\s+<", "><", body)
    while "<g></g>" in body or "<defs></defs>" in body:
        body = body.replace("<g></g>", "").replace("<defs></defs>", "")
    return body


def _tag(tag: str, name: str, used: set[str]) -> str:
    """Return a tag with prefixed ids, CSS variables for colours, and shorter numbers."""
    tag = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", tag)
    tag = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', tag).replace("url(#", f"url(#{name}-")
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(r"\d+\.\d{2,}", lambda m: f"{float(m[0]):.1f}", tag) if " d=" in tag else tag
    tag = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", tag)
    tag = re.sub(r"\s+", " ", tag)
    for key, colour in COLOUR.items():
        tag = tag.replace(colour, f"var(--{key})")
    return tag
