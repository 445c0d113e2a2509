"""The checks against fooling ourselves see what they are for, and nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from robust_export.recipe.schema import Verify
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.verification import sanity as guards
from robust_export.verification.criteria import Criteria


def f32(values: object) -> Pixels:
    return np.array(values, np.float32)


GATES = Criteria.of(Verify(), "fp32", scale=10.0, margin=4.0)  # a gap of 0.01 is allowed
IMAGES = np.random.default_rng(0).random((8, 3, 4, 4), np.float32)
WEIGHT = np.random.default_rng(1).standard_normal((48, 5)).astype(np.float32)
MEAN = f32([0.4, 0.5, 0.6]).reshape(3, 1, 1)
STD = f32([0.2, 0.3, 0.25]).reshape(3, 1, 1)


class Net:
    """A linear network behind a normalisation; `see` and `say` are what an artifact gets wrong."""

    runtime, precision = "test", "fp32"

    def __init__(
        self, see: Callable[[Pixels], Pixels] = lambda x: x, say: Callable[[Logits], Logits] = lambda x: x
    ) -> None:
        self.see, self.say = see, say

    def __call__(self, pixels: Pixels) -> Logits:
        x = (self.see(pixels) - MEAN) / STD
        return self.say((x.reshape(len(x), -1) @ WEIGHT).astype(np.float32))


class Previous(Net):
    """Returns the batch before."""

    last: Logits | None = None

    def __call__(self, pixels: Pixels) -> Logits:
        now = super().__call__(pixels)
        self.last, answer = now, self.last
        return now if answer is None or answer.shape != now.shape else answer


class FirstOnly(Net):
    """Right for a batch of one; in others, every image gets the first one's logits."""

    def __call__(self, pixels: Pixels) -> Logits:
        logits = super().__call__(pixels)
        return np.repeat(logits[:1], len(logits), axis=0)


class Position(Net):
    """Spoils the last image of a batch."""

    def __call__(self, pixels: Pixels) -> Logits:
        logits = super().__call__(pixels)
        logits[-1] += f32([1, 0, 0, 0, 0]) * (len(logits) > 1)
        return logits


def outcomes(net: Net) -> dict[str, str]:
    return {g.name: g.outcome for g in guards.repeatable(net, IMAGES, GATES)}


def test_a_repeatable_artifact() -> None:
    assert set(outcomes(Net()).values()) == {"ok"}


@pytest.mark.parametrize(
    ("net", "failing"),
    [
        (Previous(), "the same input twice"),
        (FirstOnly(), "batches of 1 and of 8"),
        (Position(), "position in the batch"),
    ],
)
def test_what_depends_on_more_than_the_image(net: Net, failing: str) -> None:
    assert outcomes(net)[failing] == "fail"


def test_noise_is_seen() -> None:
    random = np.random.default_rng(0)
    noisy = Net(say=lambda x: x + random.standard_normal(x.shape).astype(np.float32))
    assert outcomes(noisy)["the same input twice"] == "fail"


def test_finite() -> None:
    good = np.zeros((2, 3), np.float32)
    assert guards.finite([good, good]).outcome == "ok"
    bad = good.copy()
    bad[1, 2] = np.inf
    row = guards.finite([good, bad])
    assert row.outcome == "fail"
    assert "1 of 12 logits" in row.evidence


def test_extremes() -> None:
    assert guards.extremes(Net(), Net(), IMAGES, GATES).outcome == "ok"
    clips = Net(see=lambda x: np.minimum(x, 0.999))  # right on all images but white ones
    assert guards.extremes(Net(), clips, IMAGES, GATES).outcome == "fail"


def test_labels_that_are_permuted_are_named() -> None:
    names = ["ant", "bee", "cat", "dog", "eel"]
    ours = Net()(IMAGES)
    assert guards.labels_in_order(ours, ours + 0.1, names).outcome == "ok"
    row = guards.labels_in_order(ours, ours[:, [1, 0, 2, 3, 4]], names)
    assert row.outcome == "fail"
    assert "ant at bee's place" in row.evidence
    assert "bee at ant's place" in row.evidence
    assert "cat" not in row.evidence


@pytest.mark.parametrize(
    ("see", "name"),
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
def test_preprocessing_mistakes_are_named(see: Callable[[Pixels], Pixels], name: str) -> None:
    row = guards.preprocessing(Net(), Net(see=see), IMAGES, GATES, (MEAN, STD))
    assert row.outcome == "fail"
    assert name in row.evidence


def test_a_gap_that_is_no_mistake_of_preprocessing_is_not_called_one() -> None:
    assert guards.preprocessing(Net(), Net(), IMAGES, GATES, None).outcome == "ok"
    row = guards.preprocessing(Net(), Net(say=np.abs), IMAGES, GATES, (MEAN, STD))
    assert row.outcome == "ok"
    assert "no usual mistake" in row.evidence


def test_masked_gradients() -> None:
    good = guards.masking({"apgd-ce": 0.5, "square": 0.5}, 0.6, 0.5, 0.0, [])
    assert {row.outcome for row in good} == {"ok"}
    bad = guards.masking({"apgd-ce": 0.5, "square": 0.4}, 0.3, 0.5, 0.2, ["zero gradients"])
    assert [row.outcome for row in bad] == ["warn"] * 4
    assert "10.0%" in bad[0].evidence
    assert "zero gradients" in bad[3].evidence


def test_the_black_box_is_not_compared_with_nothing() -> None:
    assert guards.black_box({"square": 0.1}).outcome == "ok"
    assert guards.black_box({"transfer": 0.5}).outcome == "ok"
    assert guards.black_box({"transfer": 0.5, "bpda": 0.5, "square": 0.3}).outcome == "warn"
