"""Adversarial examples of all images, and the robust accuracy of a classifier on them.

Reference model and artifacts are evaluated on the union of all examples: an example that one attack found on
one artifact counts for all classifiers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Classifier, Logits, Pixels
from robust_export.verification.results import Bools, Floats

Labels = npt.NDArray[np.int64]  # [N]
Rows = npt.NDArray[np.int64]  # [M], indices of images


@dataclass(frozen=True)
class ExampleSet:
    """Examples of one attack.

    Attributes:
        rows: [M], the images they are of.
        pixels: [M, C, H, W].
        radius: [M], distance from the image in the threat's norm.
    """

    name: str
    rows: Rows
    pixels: Pixels
    radius: Floats


class Examples:
    """All examples found so far. The clean images are the first set.

    Attributes:
        noise: [N, C, H, W] of uniform noise, for parity on random inputs.
    """

    def __init__(self, clean: Pixels, labels: Labels, threat: Threat, seed: int = 0) -> None:
        self.clean, self.labels, self.threat = clean, labels, threat
        self.noise: Pixels = np.random.default_rng(seed).random(clean.shape, np.float32)
        self.sets: list[ExampleSet] = []
        self.add("clean", np.arange(len(clean)), clean)

    def add(self, name: str, rows: npt.NDArray[Any], pixels: Pixels) -> None:
        """Add examples of the images `rows`; an empty set is added for "autoattack" only."""
        rows = np.asarray(rows, np.int64)
        if len(rows) == 0 and name != "autoattack":
            return
        self.sets.append(ExampleSet(name, rows, pixels, distance(pixels, self.clean[rows], self.threat)))

    def get(self, name: str) -> ExampleSet:
        return next(examples for examples in self.sets if examples.name == name)


class Evaluation:
    """Runs one classifier on the examples. `update` runs it on the new ones.

    Attributes:
        broken_at: [N], distance of the nearest example that is misclassified; infinite without one.
        logits: by name of the example set, and "noise".
    """

    def __init__(self, classifier: Classifier, examples: Examples) -> None:
        self.classifier, self.examples = classifier, examples
        self.broken_at = np.full(len(examples.labels), np.inf)
        self.logits = {"noise": classifier(examples.noise)}
        self._evaluated = 0
        self.update()

    def update(self) -> Evaluation:
        """Run the classifier on all examples that were added since."""
        for examples in self.examples.sets[self._evaluated :]:
            logits = self.classifier(examples.pixels) if len(examples.rows) else self.logits["clean"][:0]
            wrong = ~correctly_classified(logits, self.examples.labels[examples.rows])
            np.minimum.at(self.broken_at, examples.rows[wrong], examples.radius[wrong])
            self.logits[examples.name] = logits
            self._evaluated += 1
        return self

    @property
    def clean(self) -> Bools:
        """Which images are correctly classified, [N]."""
        return self.broken_at > 0

    @property
    def robust(self) -> Bools:
        """Which images are robust within the threat's eps, [N]."""
        return self.robust_at(self.examples.threat.eps)

    def robust_at(self, eps: float) -> Bools:
        """Return which images have no misclassified example within eps, [N]."""
        return self.broken_at > (with_rounding(eps) if eps else 0)

    def parity_logits(self) -> dict[str, Logits]:
        """Return the logits [N, K] on "clean", "adversarial" and "noise" inputs, for parity.

        The adversarial input of an image is AutoAttack's example if it found one, else PGD's.
        """
        adversarial = self.logits["pgd"].copy()
        adversarial[self.examples.get("autoattack").rows] = self.logits["autoattack"]
        return {"clean": self.logits["clean"], "adversarial": adversarial, "noise": self.logits["noise"]}


def correctly_classified(logits: Logits, labels: Labels) -> Bools:
    """Return which inputs are classified as labelled, [N]; rows that are not finite never are."""
    correct: Bools = (logits.argmax(axis=1) == labels) & np.isfinite(logits).all(axis=1)
    return correct


def distance(one: Pixels, other: Pixels, threat: Threat) -> Floats:
    """Return the distance of each pair of images in the threat's norm, [N]."""
    delta = np.abs(one.astype(np.float64) - other).reshape(len(one), one[0].size if len(one) else 0)
    if threat.norm == "Linf":
        return np.asarray(delta.max(axis=1, initial=0))
    length: Floats = np.sqrt((delta**2).sum(axis=1))
    return length


def with_rounding(eps: float) -> float:
    """Return the largest distance that counts as within eps, allowing for float32 rounding."""
    return eps * (1 + 1e-5) + 1e-6
