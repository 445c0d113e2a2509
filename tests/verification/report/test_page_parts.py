"""Parts of report.html: number formats, scales, charts, images, colours."""

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

from robust_export.verification.report import curves, entries, formats, images
from robust_export.verification.report.scale import LogScale
from robust_export.verification.report.svg import NAMES
from robust_export.verification.results import CurvePoint, Example, PlotData
from tests.verification import reports

HUGE = float(np.finfo(np.float64).max)


@pytest.mark.parametrize(
    ("formatted", "expected"),
    [
        (formats.percent(0.9856), "98.6%"),
        (formats.percent(1.0), "100.0%"),
        (formats.percent(0.0), "0.0%"),
        (formats.percent(0.9999), "99.99%"),
        (formats.percent(0.0004), "0.04%"),
        (formats.percent(1e-9), "0.0000%"),
        (formats.points(-0.0041), "−0.4%"),  # noqa: RUF001
        (formats.points(-0.00001), "0.0%"),
        (formats.points(0.02, 0.02), "2.0%"),
        (formats.points(0.02, 0.0225), "2.00%"),
        (formats.points(0.0202, 0.02, 1), "2.1%"),
        (formats.points(0.0498, 0.02, -1), "4.9%"),
        (formats.points(-0.0121, 0.02, -1), "−1.3%"),  # noqa: RUF001
        (formats.points(0.00221, 0.0025, 1), "0.23%"),
        (formats.points(0.029, 0.02, 1), "2.9%"),
        (formats.number(2e-6), "2e-06"),
        (formats.number(7.15e-6), "7.2e-06"),
        (formats.number(0.0), "0"),
        (formats.number(0.012345), "0.0123"),
        (formats.number(123456.0), "123,456"),
        (formats.number(None), "–"),  # noqa: RUF001
        (formats.number(HUGE), "infinite"),
        (formats.number(float("inf")), "infinite"),
        (formats.cosine(0.9876), "0.9876"),
        (formats.cosine(1.0), "1"),
        (formats.size(44_731_220), "44.7 MB"),
        (formats.size(12), "12 bytes"),
        (formats.size(None), "–"),  # noqa: RUF001
        (formats.latency(0.00042), "0.42 ms"),
        (formats.latency(2.5), "2.5 s"),
        (formats.duration(3.21), "3.2 s"),
        (formats.duration(59.7), "1 min 0 s"),
        (formats.duration(3725), "1 h 2 min"),
        (formats.radius(8 / 255), "0.0314 (8/255)"),
        (formats.radius(0.15), "0.15"),
        (formats.radius(0.0), "0"),
        (formats.listing(range(15), 3), "0, 1, 2 and 12 more"),
        (formats.listing([]), ""),
    ],
)
def test_formats(formatted: str, expected: str) -> None:
    assert formatted == expected


def test_nested_table_becomes_rows() -> None:
    rows = formats.rows({"a_b": {"c": 1000, "d": None}, "e": [1, 2], "f": True, "g": 0.02})
    assert rows == [("a b: c", "1,000"), ("a b: d", formats.NONE), ("e", "1, 2"), ("f", "yes"), ("g", "0.02")]


@given(st.lists(st.one_of(st.floats(min_value=0), st.just(float("nan")))))
def test_scale_positions_are_ordered_and_inside(values: list[float]) -> None:
    scale = LogScale(values)
    low, high = scale.ends
    positions = scale.positions(values)
    assert ((low <= positions) & (positions <= high)).all()
    order = np.argsort(np.nan_to_num(np.array(values), nan=np.inf), kind="stable")
    assert (np.diff(positions[order]) >= 0).all()
    at, labels = scale.ticks()
    assert len(at) == len(labels) <= 8
    assert all(one < other for one, other in pairwise(at))
    assert low <= at[0] <= at[-1] <= high


def test_zero_and_infinity_are_apart() -> None:
    scale = LogScale([0, 1e-6, 1e-2, HUGE])
    zero, small, large, infinite = scale.positions([0, 1e-6, 1e-2, HUGE])
    assert (small, large) == (-6, -2)
    assert zero <= small - 1
    assert infinite >= large + 1
    assert scale.ticks()[1][0] == "0"
    assert scale.ticks()[1][-1] == "∞"


def drawn_lines(*robust: float) -> list[tuple[str, str]]:
    """Return (colour, dashes) of the artifacts' lines in the chart of curves."""
    items = [reports.artifact(curve=reports.curve(value)) for value in robust]
    report = reports.report(items)
    chart = curves.accuracy(report.reference.curve, entries.make_entries(report), report.threat)
    lines = re.findall(r"<path d=\"[^\"]*\"[^>]*style=\"fill: none;([^\"]*)stroke: var\(--(c\d)\)", chart)
    return [(colour, dashes) for dashes, colour in lines]


def test_coinciding_curves_alternate_dashes() -> None:
    lines = drawn_lines(0.487, 0.487, 0.3)
    assert [colour for colour, _ in lines] == ["c0", "c1", "c2"]
    (_, one), (_, other), (_, alone) = lines
    assert alone.strip() == ""
    assert re.findall(r"dasharray: ([\d.,]+)", one) == re.findall(r"dasharray: ([\d.,]+)", other) == ["6,6"]
    assert re.findall(r"offset: (\d+)", one) != re.findall(r"offset: (\d+)", other)


def test_drop_curve_with_other_radii() -> None:
    item = reports.artifact(curve=[CurvePoint(0.01, 0.5)])
    report = reports.report([item, reports.artifact()])
    assert curves.drop(report.reference.curve, entries.make_entries(report), report.threat, 0.02)


def test_letters_after_z() -> None:
    report = reports.report([reports.artifact()] * 28, plot_data=PlotData())
    assert [entry.letter for entry in entries.make_entries(report)][24:] == ["Y", "Z", "AA", "AB"]


def decoded(uri: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(BytesIO(b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_only_large_images_are_reduced() -> None:
    pixels = np.random.default_rng(0).random((3, 8, 6)).astype(np.float32)
    assert (decoded(images.data_uri(pixels)) == np.round(pixels * 255).transpose(1, 2, 0)).all()
    assert (decoded(images.data_uri(pixels[:1])) == np.round(pixels[0] * 255)).all()
    assert decoded(images.data_uri(np.zeros((3, 300, 150), np.float32))).shape == (64, 32, 3)


def test_difference_is_amplified_within_range() -> None:
    clean = np.full((1, 2, 2), 0.5, np.float32)
    adversarial = clean + np.array([[[0.03, -0.03], [0, 0.01]]], np.float32)
    example = Example(3, clean, adversarial, "pgd", {"reference": (3, 5)})
    [shown], factor = images.prepare([example], reports.LABELS, [])
    assert factor == 10
    assert decoded(shown.difference).tolist() == [[204, 51], [128, 153]]
    assert shown.predictions == [images.Prediction(["reference"], "cat", True, "dog", False)]
    assert images.prepare([replace(example, adversarial=clean)], [], [])[1] == 1


def test_equal_predictions_are_grouped() -> None:
    items = reports.three_artifacts()
    titles = [item.title for item in items]
    shown_entries = entries.make_entries(reports.report(items))
    predictions = {
        "reference": (0, 1),
        titles[0]: (0, 1),
        titles[1]: (0, 0),
        titles[2]: (0, 1),
        "other": (0, 0),
    }
    grey = np.zeros((1, 2, 2), np.float32)
    [shown], _ = images.prepare([Example(0, grey, grey, "pgd", predictions)], ["x"], shown_entries)
    assert [p.classifiers for p in shown.predictions] == [["reference", "A", "C"], ["B", "other"]]
    assert shown.predictions[0].adversarial == "class 1"


def luminance(colour: str) -> float:
    """Return the relative luminance of "#rrggbb" (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_contrast(scheme: int) -> None:
    style = (resources.files("robust_export.verification.report") / "templates" / "style.css").read_text(
        "utf-8"
    )
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
