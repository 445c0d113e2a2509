"""The examples that verification has of every image, and how each classifier fares on all of them.

Source and artifacts are scored on the union of all examples, whoever they were found for: an example that one
attack found on one artifact counts for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Classifier, Logits, Pixels
from robust_export.verification.criteria import Correct

Labels = npt.NDArray[np.int64]  # [N]
Rows = npt.NDArray[np.int64]  # [M], which images


@dataclass(frozen=True)
class Found:
    """Examples: `pixels` [M, C, H, W] of the images `rows` [M], each `radius` [M] away from its image."""

    name: str
    rows: Rows
    pixels: Pixels
    radius: npt.NDArray[np.float64]


class Examples:
    """All examples there are so far, each of an image of the test split.

    Attributes:
        noise: as many images of uniform noise, [N, C, H, W], which are nobody's example.
    """

    def __init__(self, clean: Pixels, labels: Labels, threat: Threat, seed: int = 0) -> None:
        self.clean, self.labels, self.threat = clean, labels, threat
        self.noise: Pixels = np.random.default_rng(seed).random(clean.shape, np.float32)
        self.sets: list[Found] = []
        self.add("clean", np.arange(len(clean)), clean)

    def add(self, name: str, rows: npt.NDArray[Any], pixels: Pixels) -> None:
        """Add examples of the images `rows`, if there are any."""
        rows = np.asarray(rows, np.int64)
        if len(rows) == 0 and name != "autoattack":
            return
        self.sets.append(Found(name, rows, pixels, distance(pixels, self.clean[rows], self.threat)))

    def get(self, name: str) -> Found:
        return next(found for found in self.sets if found.name == name)


class Score:
    """How one classifier does on the examples; `update` asks it about those that are new."""

    def __init__(self, classifier: Classifier, examples: Examples) -> None:
        self.classifier, self.examples = classifier, examples
        self.broken_at = np.full(len(examples.labels), np.inf)  # [N], the nearest example that it misreads
        self.logits = {"noise": classifier(examples.noise)}
        self._seen = 0
        self.update()

    def update(self) -> Score:
        """Ask about every example that was added since."""
        for found in self.examples.sets[self._seen :]:
            logits = self.classifier(found.pixels) if len(found.rows) else self.logits["clean"][:0]
            wrong = ~right(logits, self.examples.labels[found.rows])
            np.minimum.at(self.broken_at, found.rows[wrong], found.radius[wrong])
            self.logits[found.name] = logits
            self._seen += 1
        return self

    @property
    def clean(self) -> Correct:
        """Which images are read right as they are, [N]."""
        return self.broken_at > 0

    @property
    def robust(self) -> Correct:
        """Which images are read right whatever the threat's ball was found to hold, [N]."""
        return self.stands(self.examples.threat.eps)

    def stands(self, eps: float) -> Correct:
        """Which images are read right on every example of a ball of radius eps, [N]."""
        return self.broken_at > (reach(eps) if eps else 0)

    def compared(self) -> dict[str, Logits]:
        """Return the logits that parity is judged on, [N, K] each: clean, adversarial, noise.

        Adversarial is the strongest example of each image: AutoAttack's, PGD's elsewhere.
        """
        strongest = self.logits["pgd"].copy()
        strongest[self.examples.get("autoattack").rows] = self.logits["autoattack"]
        return {"clean": self.logits["clean"], "adversarial": strongest, "noise": self.logits["noise"]}


def right(logits: Logits, labels: Labels) -> Correct:
    """Return which inputs are decided as labelled, [N]; where a logit is not finite, nothing is decided."""
    decided: Correct = np.isfinite(logits).all(axis=1) & (logits.argmax(axis=1) == labels)
    return decided


def distance(one: Pixels, other: Pixels, threat: Threat) -> npt.NDArray[np.float64]:
    """Return the distance of each pair of images in the threat's norm, [N]."""
    delta = np.abs(one.astype(np.float64) - other).reshape(len(one), one[0].size if len(one) else 0)
    if threat.norm == "Linf":
        return np.asarray(delta.max(axis=1, initial=0))
    length: npt.NDArray[np.float64] = np.sqrt((delta**2).sum(axis=1))
    return length


def reach(eps: float) -> float:
    """Return the radius up to which an example counts for eps, float32's rounding included."""
    return eps * (1 + 1e-5) + 1e-6
