"""Source and artifacts are scored on the union of all examples, at every radius."""

from __future__ import annotations

import numpy as np

from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.verification.examples import Examples, Score, distance, right


def f32(values: object) -> Pixels:
    return np.array(values, np.float32)


THREAT = Threat("Linf", 0.1)
CLEAN = np.full((4, 1, 2, 2), 0.5, np.float32)
LABELS = np.array([0, 0, 0, 1])


class Bright:
    """Says 1 where an image is brighter than a threshold, 0 elsewhere."""

    runtime, precision = "test", "fp32"

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.asked = 0

    def __call__(self, pixels: Pixels) -> Logits:
        self.asked += len(pixels)
        one = pixels.mean(axis=(1, 2, 3)) > self.threshold
        return np.stack([~one, one], axis=1).astype(np.float32)


def test_an_image_stands_while_every_example_of_it_is_read_right() -> None:
    examples = Examples(CLEAN, LABELS, THREAT)
    score = Score(Bright(0.55), examples)
    assert score.clean.tolist() == [True, True, True, False]
    examples.add("far", np.array([0, 1]), CLEAN[:2] + f32([[[[0.1]]], [[[0.02]]]]))
    assert score.robust.tolist() == [True, True, True, False]  # not asked yet
    assert score.update().robust.tolist() == [False, True, True, False]
    assert score.stands(0.05).tolist() == [True, True, True, False]
    assert score.stands(0.0).tolist() == score.clean.tolist()


def test_an_example_beyond_the_threat_counts_for_larger_balls_only() -> None:
    examples = Examples(CLEAN, LABELS, THREAT)
    examples.add("beyond", np.array([2]), CLEAN[2:3] + np.float32(0.3))
    score = Score(Bright(0.55), examples)
    assert score.robust.tolist() == [True, True, True, False]
    assert score.stands(0.3).tolist() == [True, True, False, False]


def test_nobody_is_asked_twice_about_the_same_example() -> None:
    examples = Examples(CLEAN, LABELS, THREAT)
    classifier = Bright(0.55)
    score = Score(classifier, examples)
    score.update()
    examples.add("more", np.array([0]), CLEAN[:1])
    score.update().update()
    assert classifier.asked == 4 + 4 + 1  # noise, clean images, what was added


def test_an_example_found_for_one_counts_for_all() -> None:
    examples = Examples(CLEAN, LABELS, THREAT)
    one, other = Score(Bright(0.55), examples), Score(Bright(0.56), examples)
    examples.add("found on one", np.array([0]), CLEAN[:1] + np.float32(0.09))
    assert not one.update().robust[0]
    assert not other.update().robust[0]


def test_distances() -> None:
    moved = CLEAN.copy()
    moved[0, 0, 0, 0] += 0.03
    moved[0, 0, 1, 1] -= 0.04
    np.testing.assert_allclose(distance(moved, CLEAN, THREAT), [0.04, 0, 0, 0], atol=1e-7)
    np.testing.assert_allclose(distance(moved, CLEAN, Threat("L2", 1)), [0.05, 0, 0, 0], atol=1e-7)
    assert distance(moved[:0], CLEAN[:0], THREAT).shape == (0,)


def test_logits_that_are_not_finite_are_never_right() -> None:
    logits = f32([[1, 0], [np.nan, 0], [np.inf, 0]])
    assert right(logits, np.zeros(3, np.int64)).tolist() == [True, False, False]
