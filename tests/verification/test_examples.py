"""Evaluation on the union of all examples, at every radius."""

from __future__ import annotations

import numpy as np

from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.verification.examples import Evaluation, Examples, correctly_classified, distance


def f32(values: object) -> Pixels:
    return np.array(values, np.float32)


THREAT = Threat("Linf", 0.1)
CLEAN = np.full((4, 1, 2, 2), 0.5, np.float32)
LABELS = np.array([0, 0, 0, 1])


class Bright:
    """Predicts 1 if the image is brighter than a threshold, else 0."""

    runtime, precision = "test", "fp32"

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.inputs = 0

    def __call__(self, pixels: Pixels) -> Logits:
        self.inputs += len(pixels)
        one = pixels.mean(axis=(1, 2, 3)) > self.threshold
        return np.stack([~one, one], axis=1).astype(np.float32)


def test_image_is_robust_until_an_example_breaks_it() -> None:
    examples = Examples(CLEAN, LABELS, THREAT)
    evaluation = Evaluation(Bright(0.55), examples)
    assert evaluation.clean.tolist() == [True, True, True, False]
    examples.add("far", np.array([0, 1]), CLEAN[:2] + f32([[[[0.1]]], [[[0.02]]]]))
    assert evaluation.robust.tolist() == [True, True, True, False]  # not updated yet
    assert evaluation.update().robust.tolist() == [False, True, True, False]
    assert evaluation.robust_at(0.05).tolist() == [True, True, True, False]
    assert evaluation.robust_at(0.0).tolist() == evaluation.clean.tolist()


def test_example_beyond_eps_counts_for_larger_radii() -> None:
    examples = Examples(CLEAN, LABELS, THREAT)
    examples.add("beyond", np.array([2]), CLEAN[2:3] + np.float32(0.3))
    evaluation = Evaluation(Bright(0.55), examples)
    assert evaluation.robust.tolist() == [True, True, True, False]
    assert evaluation.robust_at(0.3).tolist() == [True, True, False, False]


def test_examples_are_evaluated_once() -> None:
    examples = Examples(CLEAN, LABELS, THREAT)
    classifier = Bright(0.55)
    evaluation = Evaluation(classifier, examples)
    evaluation.update()
    examples.add("more", np.array([0]), CLEAN[:1])
    evaluation.update().update()
    assert classifier.inputs == 4 + 4 + 1  # noise, clean images, added examples


def test_example_counts_for_all_classifiers() -> None:
    examples = Examples(CLEAN, LABELS, THREAT)
    one, other = Evaluation(Bright(0.55), examples), Evaluation(Bright(0.56), examples)
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


def test_non_finite_logits_are_misclassified() -> None:
    logits = f32([[1, 0], [np.nan, 0], [np.inf, 0]])
    assert correctly_classified(logits, np.zeros(3, np.int64)).tolist() == [True, False, False]
