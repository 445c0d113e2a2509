"""What report.html is made of: figures in words, scales, charts, images, colours."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import replace
from importlib import resources
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from robust_export.verification.report import curves, entries, images
from robust_export.verification.report import wording as words
from robust_export.verification.report.scale import LogScale
from robust_export.verification.report.svg import NAMES
from robust_export.verification.results import CurvePoint, Example, Pictures, title
from tests.verification import reports

HUGE = float(np.finfo(np.float64).max)


@pytest.mark.parametrize(
    ("said", "words_for_it"),
    [
        (words.percent(0.9856), "98.6%"), (words.percent(1.0), "100.0%"), (words.percent(0.0), "0.0%"),
        (words.percent(0.9999), "99.99%"), (words.percent(0.0004), "0.04%"), (words.percent(1e-9), "0.0000%"),
        (words.points(-0.0041), "−0.4%"), (words.points(-0.00001), "0.0%"),  # noqa: RUF001
        (words.points(0.02, 0.02), "2.0%"), (words.points(0.02, 0.0225), "2.00%"),
        (words.points(0.0202, 0.02, 1), "2.1%"), (words.points(0.0498, 0.02, -1), "4.9%"),
        (words.points(-0.0121, 0.02, -1), "−1.3%"), (words.points(0.00221, 0.0025, 1), "0.23%"),  # noqa: RUF001
        (words.points(0.029, 0.02, 1), "2.9%"),
        (words.number(2e-6), "2e-06"), (words.number(7.15e-6), "7.2e-06"), (words.number(0.0), "0"),
        (words.number(0.012345), "0.0123"), (words.number(123456.0), "123,456"), (words.number(None), "–"),  # noqa: RUF001
        (words.number(HUGE), "infinite"), (words.number(float("inf")), "infinite"),
        (words.cosine(0.9876), "0.9876"), (words.cosine(1.0), "1"),
        (words.size(44_731_220), "44.7 MB"), (words.size(12), "12 bytes"), (words.size(None), "–"),  # noqa: RUF001
        (words.latency(0.00042), "0.42 ms"), (words.latency(2.5), "2.5 s"), (words.duration(3.21), "3.2 s"),
        (words.duration(59.7), "1 min 0 s"), (words.duration(3725), "1 h 2 min"),
        (words.radius(8 / 255), "0.0314 (8/255)"), (words.radius(0.15), "0.15"), (words.radius(0.0), "0"),
        (words.some(range(15), 3), "0, 1, 2 and 12 more"), (words.some([]), ""),
    ],
)  # fmt: skip
def test_figures_in_words(said: str, words_for_it: str) -> None:
    assert said == words_for_it


def test_tables_in_tables_become_rows() -> None:
    found = words.facts({"a_b": {"c": 1000, "d": None}, "e": [1, 2], "f": True, "g": 0.02})
    assert found == [("a b: c", "1,000"), ("a b: d", words.NONE), ("e", "1, 2"), ("f", "yes"), ("g", "0.02")]


@given(st.lists(st.one_of(st.floats(min_value=0), st.just(float("nan")))))
def test_a_scale_has_a_place_for_every_value(values: list[float]) -> None:
    scale = LogScale(values)
    low, high = scale.ends
    places = scale.place(values)
    assert ((low <= places) & (places <= high)).all()
    order = np.argsort(np.nan_to_num(np.array(values), nan=np.inf), kind="stable")
    assert (np.diff(places[order]) >= 0).all()
    at, labels = scale.ticks()
    assert len(at) == len(labels) <= 8
    assert all(one < other for one, other in pairwise(at))
    assert low <= at[0] <= at[-1] <= high


def test_zero_and_infinity_stand_apart() -> None:
    scale = LogScale([0, 1e-6, 1e-2, HUGE])
    zero, small, large, infinite = scale.place([0, 1e-6, 1e-2, HUGE])
    assert (small, large) == (-6, -2)
    assert zero <= small - 1
    assert infinite >= large + 1
    assert scale.ticks()[1][0] == "0"
    assert scale.ticks()[1][-1] == "∞"


def drawn(*robust: float) -> list[tuple[str, str]]:
    """Return (colour, dashes) of the artifacts' lines in the chart of curves."""
    items = [reports.artifact(curve=reports.curve(value)) for value in robust]
    report = reports.report(items)
    chart = curves.accuracy(report.source.curve, entries.entries(report), report.threat)
    lines = re.findall(r"<path d=\"[^\"]*\"[^>]*style=\"fill: none;([^\"]*)stroke: var\(--(c\d)\)", chart)
    return [(colour, dashes) for dashes, colour in lines]


def test_curves_that_coincide_take_turns() -> None:
    lines = drawn(0.487, 0.487, 0.3)
    assert [colour for colour, _ in lines] == ["c0", "c1", "c2"]
    (_, one), (_, other), (_, alone) = lines
    assert alone.strip() == ""
    assert re.findall(r"dasharray: ([\d.,]+)", one) == re.findall(r"dasharray: ([\d.,]+)", other) == ["6,6"]
    assert re.findall(r"offset: (\d+)", one) != re.findall(r"offset: (\d+)", other)


def test_a_curve_of_other_radii_is_drawn() -> None:
    item = reports.artifact(curve=[CurvePoint(0.01, 0.5)])
    report = reports.report([item, reports.artifact()])
    assert curves.loss(report.source.curve, entries.entries(report), report.threat, 0.02)


def test_letters_go_on_after_z() -> None:
    report = reports.report([reports.artifact()] * 28, pictures=Pictures())
    assert [entry.letter for entry in entries.entries(report)][24:] == ["Y", "Z", "AA", "AB"]


def decoded(uri: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(BytesIO(b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_small_images_are_kept_to_the_pixel_and_large_ones_are_reduced() -> None:
    pixels = np.random.default_rng(0).random((3, 8, 6)).astype(np.float32)
    assert (decoded(images.data_uri(pixels)) == np.round(pixels * 255).transpose(1, 2, 0)).all()
    assert (decoded(images.data_uri(pixels[:1])) == np.round(pixels[0] * 255)).all()
    assert decoded(images.data_uri(np.zeros((3, 300, 150), np.float32))).shape == (64, 32, 3)


def test_differences_are_amplified_as_far_as_they_fit() -> None:
    clean = np.full((1, 2, 2), 0.5, np.float32)
    adversarial = clean + np.array([[[0.03, -0.03], [0, 0.01]]], np.float32)
    example = Example(3, clean, adversarial, "pgd", {"source": (3, 5)})
    [found], factor = images.shown([example], reports.LABELS, [])
    assert factor == 10
    assert decoded(found.difference).tolist() == [[204, 51], [128, 153]]
    assert found.decisions == [images.Decision(["source"], "cat", True, "dog", False)]
    assert images.shown([replace(example, adversarial=clean)], [], [])[1] == 1


def test_those_who_decide_alike_stand_together() -> None:
    items = reports.three()
    titles = [title(item) for item in items]
    shown = entries.entries(reports.report(items))
    decisions = {"source": (0, 1), titles[0]: (0, 1), titles[1]: (0, 0), titles[2]: (0, 1), "other": (0, 0)}
    grey = np.zeros((1, 2, 2), np.float32)
    [found], _ = images.shown([Example(0, grey, grey, "pgd", decisions)], ["x"], shown)
    assert [decision.who for decision in found.decisions] == [["source", "A", "C"], ["B", "other"]]
    assert found.decisions[0].adversarial == "class 1"


def luminance(colour: str) -> float:
    """Return the relative luminance of "#rrggbb" (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_stand_out(scheme: int) -> None:
    style = (resources.files("robust_export.verification.report") / "style.css").read_text("utf-8")
    blocks = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", b))
        for b in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    colours = blocks[scheme]
    assert set(NAMES) <= colours.keys()

    def contrast(one: str, other: str) -> float:
        light, dark = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for name in ("ink", "muted", "pass", "fail", "undecided"):
        assert contrast(name, "bg") >= 4.5, name
        assert contrast(name, "panel") >= 4.5, name
    for name in (f"c{i}" for i in range(6)):
        assert contrast(name, "on") >= 4.5, name  # the letter on its colour
        assert contrast(name, "bg") >= 3, name  # a line of a chart
    assert contrast("ink", "band") >= 4.5
