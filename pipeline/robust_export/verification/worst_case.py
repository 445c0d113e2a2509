"""Worst-case search: large logit differences and different predictions within eps of an image.

Random inputs lie far from any decision boundary, and a difference that flips predictions near a boundary
can be invisible on them. So the search visits inputs near decision boundaries:

1. the image, its adversarial examples, and a corner of its ball;
2. the decision boundaries of reference model and artifact between an image and its adversarial example, by
   bisection down to adjacent float32 images. Predictions differ between the two boundaries, and the reference
   model's margin is largest at the artifact's boundary;
3. steps of growing size away from the boundary, on both sides;
4. black-box ascent on the difference itself: random squares, as in the attack Square, kept where it grows.

Every input that both run on counts as an evaluation, also those of BPDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Classifier, Logits, Pixels
from robust_export.utils.work_items import Arrays
from robust_export.verification.examples import (
    Labels,
    Rows,
    correctly_classified,
    distance,
    with_rounding,
)
from robust_export.verification.parity import flipped, margins, max_abs_differences
from robust_export.verification.results import (
    Bools,
    Floats,
    InputDifferences,
    LogitDifferences,
    WorstCase,
)

MAX_HALVINGS = 60  # bisection in float32 ends earlier
STEPS = range(3, 17)  # exponents k of the steps 2^-k of the way from the image to its adversarial example
LARGEST_SQUARE = 0.5  # of the image's side, at the start of the ascent


class DifferenceRecorder:
    """Records margin, difference and flip of every input that reference model and artifact run on."""

    def __init__(self) -> None:
        self._parts: list[tuple[Floats, Floats, Bools]] = []

    def observe(self, pixels: Pixels, reference: Logits, artifact: Logits) -> None:  # noqa: ARG002
        """Record the logits [N, K] of the reference model and of the artifact on `pixels`."""
        self._parts.append(
            (margins(reference), max_abs_differences(reference, artifact), flipped(reference, artifact))
        )

    def arrays(self) -> Arrays:
        """Return margin, max_abs and flipped, [M] each, as the result of a work item."""
        if not self._parts:
            return {"margin": np.zeros(0), "max_abs": np.zeros(0), "flipped": np.zeros(0, bool)}
        margin, max_abs, flips = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        return {"margin": margin, "max_abs": max_abs, "flipped": flips}


def join(parts: Sequence[Arrays]) -> InputDifferences:
    """Concatenate the recordings of several work items."""
    margin, max_abs, flips = (
        np.concatenate([part[name] for part in parts]) for name in ("margin", "max_abs", "flipped")
    )
    return InputDifferences(margin, max_abs, flips.astype(bool))


def summarize(inputs: InputDifferences) -> LogitDifferences:
    flip_margins = inputs.margin[inputs.flipped]
    return LogitDifferences(
        max_abs=float(inputs.max_abs.max(initial=0)), flips=int(inputs.flipped.sum()),
        flip_margin=float(flip_margins.max(initial=0)), evaluations=len(inputs.max_abs),
    )  # fmt: skip


def worst_case(searched: InputDifferences, random: InputDifferences, clean: Logits) -> WorstCase:
    """Summarize the inputs of the search and as many random ones.

    Args:
        clean: logits of the reference model on the images.
    """
    worst = summarize(searched)
    at_risk = float((margins(clean) < 2 * worst.max_abs).mean())
    return WorstCase(
        worst.max_abs, worst.flips, worst.flip_margin, worst.evaluations, summarize(random), at_risk
    )


class WorstCaseSearch:
    """Searches the balls around some images.

    Args:
        clean: [N, C, H, W], the images; labels: [N].
        starts: [N, C, H, W] each, adversarial examples; in the first, images that AutoAttack broke are
            replaced by its examples.
        ascent: steps of the black-box ascent.
    """

    def __init__(
        self, reference: Classifier, artifact: Classifier, clean: Pixels, labels: Labels,
        starts: Sequence[Pixels], threat: Threat, *, ascent: int, seed: int,
    ) -> None:  # fmt: skip
        self.reference, self.artifact = reference, artifact
        self.clean, self.labels, self.starts, self.threat = clean, labels, starts, threat
        self.ascent = ascent
        self.recorder = DifferenceRecorder()
        self.examples = clean.copy()  # the first misclassified input met for an image, where `misclassified`
        self.misclassified = np.zeros(len(clean), bool)
        self._random = np.random.default_rng(seed)

    def run(self) -> Arrays:
        """Search. Return margin, max_abs and flipped [M], and examples of the artifact: rows [E], pixels."""
        rows = np.arange(len(self.clean))
        best, largest = self.clean.copy(), np.full(len(self.clean), -1.0)
        for start in (self.clean, *self.starts, self._corner()):
            difference = max_abs_differences(*self._run_both(rows, start))
            better = difference > largest
            best[better], largest[better] = start[better], difference[better]
        self._search_boundaries()
        self._ascend(best, largest)
        broken = np.flatnonzero(self.misclassified)
        return {**self.recorder.arrays(), "rows": broken, "pixels": self.examples[broken]}

    def _run_both(self, rows: Rows, pixels: Pixels) -> tuple[Logits, Logits]:
        """Return the logits of both on examples of the images `rows`; record differences and new examples."""
        reference, artifact = self.reference(pixels), self.artifact(pixels)
        self.recorder.observe(pixels, reference, artifact)
        inside = distance(pixels, self.clean[rows], self.threat) <= with_rounding(self.threat.eps)
        wrong = ~correctly_classified(artifact, self.labels[rows])
        new = wrong & inside & ~self.misclassified[rows]
        self.examples[rows[new]] = pixels[new]
        self.misclassified[rows[new]] = True
        return reference, artifact

    def _corner(self) -> Pixels:
        """Return a random corner of each image's ball: vertical stripes, as Square starts."""
        n, channels, _, width = self.clean.shape
        stripes = self._random.choice([-1, 1], (n, channels, 1, width))
        return self._project(self.clean + self.threat.eps * stripes, np.arange(n))

    def _search_boundaries(self) -> None:
        """Bisect to the reference model's boundary, step away from it, and bisect to the artifact's."""
        adversarial = self.starts[0]
        differs = self.reference(self.clean).argmax(1) != self.reference(adversarial).argmax(1)
        rows = np.flatnonzero(differs)
        if len(rows) == 0:
            return
        inside, outside = self.clean[rows], adversarial[rows]
        nearest = self._bisect(rows, inside, outside, leader=0)
        for exponent in STEPS:
            for sign in (-1, 1):
                moved = nearest + np.float32(sign * 2.0**-exponent) * (outside - inside)
                self._run_both(rows, self._project(moved, rows))
        differs = self.artifact(inside).argmax(1) != self.artifact(outside).argmax(1)
        if differs.any():
            self._bisect(rows[differs], inside[differs], outside[differs], leader=1)

    def _bisect(self, rows: Rows, low: Pixels, high: Pixels, leader: int) -> Pixels:
        """Bisect to the decision boundary between `low` and `high`; return the last images before it.

        Args:
            leader: whose boundary, 0 for the reference model's and 1 for the artifact's.
        """
        before = (self.reference, self.artifact)[leader](low).argmax(1)
        low, high = low.copy(), high.copy()
        for _ in range(MAX_HALVINGS):
            middle: Pixels = low + (high - low) * np.float32(0.5)
            between = [(middle != end).any(axis=(1, 2, 3)) for end in (low, high)]
            moving = np.flatnonzero(between[0] & between[1])
            if len(moving) == 0:
                break
            logits = self._run_both(rows[moving], middle[moving])
            same = logits[leader].argmax(1) == before[moving]
            low[moving[same]] = middle[moving[same]]
            high[moving[~same]] = middle[moving[~same]]
        return low

    def _ascend(self, best: Pixels, largest: Floats) -> None:
        """Raise the difference from `best` on by random squares."""
        rows = np.arange(len(best))
        for step in range(self.ascent):
            proposal = self._project(self._add_squares(best, step), rows)
            difference = max_abs_differences(*self._run_both(rows, proposal))
            better = difference > largest
            best[better], largest[better] = proposal[better], difference[better]

    def _add_squares(self, images: Pixels, step: int) -> Pixels:
        """Change a random square of every image by 2 eps up or down; squares shrink from step to step."""
        n, channels, height, width = images.shape
        side = max(1, round(min(height, width) * LARGEST_SQUARE * (1 - step / max(self.ascent, 1))))
        top = self._random.integers(0, height - side + 1, (n, 1, 1, 1))
        left = self._random.integers(0, width - side + 1, (n, 1, 1, 1))
        row, column = np.arange(height).reshape(1, 1, -1, 1), np.arange(width).reshape(1, 1, 1, -1)
        square = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
        change = self._random.choice([-1, 1], (n, channels, 1, 1)) * 2 * self.threat.eps
        return np.asarray(images + square * change, np.float32)

    def _project(self, pixels: npt.NDArray[Any], rows: Rows) -> Pixels:
        """Project onto the balls around the images `rows`, and onto [0, 1]."""
        center, eps = self.clean[rows], np.float32(self.threat.eps)
        delta = pixels.astype(np.float32) - center
        if self.threat.norm == "Linf":
            delta = np.clip(delta, -eps, eps)
        else:
            length = np.sqrt((delta**2).sum(axis=(1, 2, 3), keepdims=True))
            delta *= np.minimum(1, eps / np.maximum(length, np.float32(1e-12)))
        return np.clip(center + delta, 0, 1)
