"""Sanity checks and gradient-masking checks: each detects its fault, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from robust_export.recipe.schema import Verify
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.verification import gradient_masking, sanity
from robust_export.verification.criteria import Criteria


def f32(values: object) -> Pixels:
    return np.array(values, np.float32)


CRITERIA = Criteria.for_precision(Verify(), "fp32", logit_scale=10.0, median_margin=4.0)  # max_abs 0.01
IMAGES = np.random.default_rng(0).random((8, 3, 4, 4), np.float32)
WEIGHT = np.random.default_rng(1).standard_normal((48, 5)).astype(np.float32)
MEAN = f32([0.4, 0.5, 0.6]).reshape(3, 1, 1)
STD = f32([0.2, 0.3, 0.25]).reshape(3, 1, 1)


class Net:
    """A linear network behind a normalisation. `before` changes its inputs, `after` its logits."""

    runtime, precision = "test", "fp32"

    def __init__(
        self,
        before: Callable[[Pixels], Pixels] = lambda x: x,
        after: Callable[[Logits], Logits] = lambda x: x,
    ) -> None:
        self.before, self.after = before, after

    def __call__(self, pixels: Pixels) -> Logits:
        x = (self.before(pixels) - MEAN) / STD
        return self.after((x.reshape(len(x), -1) @ WEIGHT).astype(np.float32))


class Previous(Net):
    """Returns the logits of the previous batch."""

    last: Logits | None = None

    def __call__(self, pixels: Pixels) -> Logits:
        now = super().__call__(pixels)
        self.last, answer = now, self.last
        return now if answer is None or answer.shape != now.shape else answer


class FirstOnly(Net):
    """Returns the first image's logits for every image."""

    def __call__(self, pixels: Pixels) -> Logits:
        logits = super().__call__(pixels)
        return np.repeat(logits[:1], len(logits), axis=0)


class Position(Net):
    """Changes the logits of the last image of a batch."""

    def __call__(self, pixels: Pixels) -> Logits:
        logits = super().__call__(pixels)
        logits[-1] += f32([1, 0, 0, 0, 0]) * (len(logits) > 1)
        return logits


def outcomes(net: Net) -> dict[str, str]:
    return {check.name: check.outcome for check in sanity.check_repeatable(net, IMAGES, CRITERIA)}


def test_repeatable_artifact() -> None:
    assert set(outcomes(Net()).values()) == {"ok"}


@pytest.mark.parametrize(
    ("net", "failing"),
    [
        (Previous(), "the same input twice"),
        (FirstOnly(), "batches of 1 and of 8"),
        (Position(), "position in the batch"),
    ],
)
def test_dependence_on_more_than_the_image(net: Net, failing: str) -> None:
    assert outcomes(net)[failing] == "fail"


def test_random_noise() -> None:
    random = np.random.default_rng(0)
    noisy = Net(after=lambda x: x + random.standard_normal(x.shape).astype(np.float32))
    assert outcomes(noisy)["the same input twice"] == "fail"


def test_finite() -> None:
    good = np.zeros((2, 3), np.float32)
    assert sanity.check_finite([good, good]).outcome == "ok"
    bad = good.copy()
    bad[1, 2] = np.inf
    check = sanity.check_finite([good, bad])
    assert check.outcome == "fail"
    assert "1 of 12 logits" in check.evidence


def test_extreme_pixels() -> None:
    assert sanity.check_extreme_pixels(Net(), Net(), IMAGES, CRITERIA).outcome == "ok"
    clips = Net(before=lambda x: np.minimum(x, 0.999))  # wrong on white images only
    assert sanity.check_extreme_pixels(Net(), clips, IMAGES, CRITERIA).outcome == "fail"


def test_permuted_labels_are_named() -> None:
    names = ["ant", "bee", "cat", "dog", "eel"]
    ours = Net()(IMAGES)
    assert sanity.check_label_order(ours, ours + 0.1, names).outcome == "ok"
    check = sanity.check_label_order(ours, ours[:, [1, 0, 2, 3, 4]], names)
    assert check.outcome == "fail"
    assert "output bee holds class ant" in check.evidence
    assert "output ant holds class bee" in check.evidence
    assert "cat" not in check.evidence


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda x: x / 255, "divided by 255"),
        (lambda x: x * 255, "times 255"),
        (lambda x: x[:, ::-1], "BGR"),
        (lambda x: x * STD + MEAN, "without normalisation"),
        (lambda x: (x - MEAN) / STD, "normalised already"),
        (lambda x: x[:, :, :, ::-1], "mirrored"),
        (lambda x: x.swapaxes(2, 3), "swapped"),
        (lambda x: 1 - x, "inverted"),
    ],
)
def test_preprocessing_errors_are_named(change: Callable[[Pixels], Pixels], name: str) -> None:
    check = sanity.check_preprocessing(Net(), Net(before=change), IMAGES, CRITERIA, (MEAN, STD))
    assert check.outcome == "fail"
    assert name in check.evidence


def test_other_differences_are_no_preprocessing_error() -> None:
    assert sanity.check_preprocessing(Net(), Net(), IMAGES, CRITERIA, None).outcome == "ok"
    check = sanity.check_preprocessing(Net(), Net(after=np.abs), IMAGES, CRITERIA, (MEAN, STD))
    assert check.outcome == "ok"
    assert "no common preprocessing error" in check.evidence


def test_reference_checks() -> None:
    good = gradient_masking.check_reference({"apgd-ce": 0.5, "square": 0.5}, 0.6, 0.5, 0.0, [])
    assert {check.outcome for check in good} == {"ok"}
    bad = gradient_masking.check_reference({"apgd-ce": 0.5, "square": 0.4}, 0.3, 0.5, 0.2, ["zero gradients"])
    assert [check.outcome for check in bad] == ["warn"] * 4
    assert "10.0%" in bad[0].evidence
    assert "zero gradients" in bad[3].evidence


def test_black_box_needs_other_attacks() -> None:
    assert gradient_masking.check_artifact({"square": 0.1}).outcome == "ok"
    assert gradient_masking.check_artifact({"transfer": 0.5}).outcome == "ok"
    assert gradient_masking.check_artifact({"transfer": 0.5, "bpda": 0.5, "square": 0.3}).outcome == "warn"
