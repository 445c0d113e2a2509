"""Worst-case parity: where in the ball source and artifact differ most, and where they decide differently.

Random inputs, which exporters are compared on, lie far from any decision boundary: a difference that they
show turns no decision, and one that they do not show may. So the search goes where decisions turn:

1. the image, its adversarial examples, and a corner of its ball;
2. the source's boundary, and the artifact's, between an image and its adversarial example: bisection down to
   the last float32 steps. Whatever lies between the two boundaries is decided differently, and the artifact's
   boundary is where the source is surest about it;
3. a ladder of steps away from the boundary, on both sides;
4. black-box ascent on the gap itself: random squares, as in the attack Square, kept where the gap grows.

Every input on which both are asked is an evaluation, those of BPDA among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Classifier, Logits, Pixels
from robust_export.utils.work_items import Arrays
from robust_export.verification.examples import Labels, distance, reach, right
from robust_export.verification.parity import Bools, Floats, flipped, gaps, margins
from robust_export.verification.results import Points, Searched, WorstCase

HALVINGS = 60  # more than a float32 in [0, 1] can be halved; bisection ends by itself before
LADDER = range(3, 17)  # steps of 2^-k of the way from the image to its adversarial example
LARGEST_SQUARE = 0.5  # of the image's side, at the start of the ascent


class Watch:
    """Keeps gap, margin and agreement of every input on which source and artifact are asked."""

    def __init__(self) -> None:
        self._parts: list[tuple[Floats, Floats, Bools]] = []

    def observe(self, pixels: Pixels, ours: Logits, theirs: Logits) -> None:  # noqa: ARG002
        """Note what the source (`ours` [N, K]) and the artifact (`theirs`) say to `pixels`."""
        self._parts.append((margins(ours), gaps(ours, theirs), flipped(ours, theirs)))

    def arrays(self) -> Arrays:
        """Return margin, gap and flipped, [M] each, for a unit's result."""
        margin, gap, flip = (
            (np.concatenate(column) for column in zip(*self._parts, strict=True))
            if self._parts
            else (np.zeros(0), np.zeros(0), np.zeros(0, bool))
        )
        return {"margin": margin, "gap": gap, "flipped": flip}


def points(parts: Sequence[Arrays]) -> Points:
    """Return what several units saw, as one."""
    margin, gap, flip = (
        np.concatenate([part[name] for part in parts]) for name in ("margin", "gap", "flipped")
    )
    return Points(margin, gap, flip.astype(bool))


def summary(seen: Points) -> Searched:
    flips = seen.margin[seen.flipped]
    return Searched(
        float(seen.gap.max(initial=0)), int(seen.flipped.sum()), float(flips.max(initial=0)), len(seen.gap)
    )


def worst_case(seen: Points, random: Points, clean: Logits) -> WorstCase:
    """Return the result of a search beside that of random inputs.

    Args:
        clean: the source's logits on the images themselves.
    """
    found, chance = summary(seen), summary(random)
    at_risk = float((margins(clean) < 2 * found.max_abs).mean())
    return WorstCase(found.max_abs, found.flips, found.flip_margin, found.evaluations, chance, at_risk)


class Search:
    """Searches the balls around some images for the worst that the artifact does.

    Args:
        clean: [N, C, H, W], the images; labels: [N], theirs.
        starts: [N, C, H, W] each, adversarial examples of the source; the first kind is where the source
            errs, if it does anywhere.
        ascent: steps of the black-box ascent.
    """

    def __init__(
        self, source: Classifier, artifact: Classifier, clean: Pixels, labels: Labels,
        starts: Sequence[Pixels], threat: Threat, *, ascent: int, seed: int,
    ) -> None:  # fmt: skip
        self.source, self.artifact = source, artifact
        self.clean, self.labels, self.starts, self.threat = clean, labels, starts, threat
        self.ascent = ascent
        self.watch = Watch()
        self.examples = clean.copy()  # what the artifact misreads, where anything was met
        self.misread = np.zeros(len(clean), bool)
        self._random = np.random.default_rng(seed)

    def run(self) -> Arrays:
        """Search; return margin, gap and flipped [M], and the examples met: rows [E], pixels [E, C, H, W]."""
        everything = np.arange(len(self.clean))
        best, gap = self.clean.copy(), np.full(len(self.clean), -1.0)
        for start in (self.clean, *self.starts, self._corner()):
            seen = gaps(*self._ask(everything, start))
            better = seen > gap
            best[better], gap[better] = start[better], seen[better]
        self._boundaries()
        self._ascend(best, gap)
        rows = np.flatnonzero(self.misread)
        return {**self.watch.arrays(), "rows": rows, "pixels": self.examples[rows]}

    def _ask(self, rows: npt.NDArray[np.int64], pixels: Pixels) -> tuple[Logits, Logits]:
        """Ask both about examples of the images `rows`; note everything."""
        ours, theirs = self.source(pixels), self.artifact(pixels)
        self.watch.observe(pixels, ours, theirs)
        inside = distance(pixels, self.clean[rows], self.threat) <= reach(self.threat.eps)
        new = ~right(theirs, self.labels[rows]) & inside & ~self.misread[rows]
        self.examples[rows[new]] = pixels[new]
        self.misread[rows[new]] = True
        return ours, theirs

    def _corner(self) -> Pixels:
        """Return a random corner of each image's ball: vertical stripes, where Square starts too."""
        n, channels, _, width = self.clean.shape
        stripes = self._random.choice([-1, 1], (n, channels, 1, width))
        return self._into_ball(self.clean + self.threat.eps * stripes, np.arange(n))

    def _boundaries(self) -> None:
        adversarial = self.starts[0]
        turns = self.source(self.clean).argmax(1) != self.source(adversarial).argmax(1)
        rows = np.flatnonzero(turns)
        if len(rows) == 0:
            return
        inside, outside = self.clean[rows], adversarial[rows]
        nearest = self._bisect(rows, inside, outside, leader=0)
        for step in LADDER:
            for sign in (-1, 1):
                moved = nearest + np.float32(sign * 2.0**-step) * (outside - inside)
                self._ask(rows, self._into_ball(moved, rows))
        turns = self.artifact(inside).argmax(1) != self.artifact(outside).argmax(1)
        if turns.any():
            self._bisect(rows[turns], inside[turns], outside[turns], leader=1)

    def _bisect(self, rows: npt.NDArray[np.int64], low: Pixels, high: Pixels, leader: int) -> Pixels:
        """Close in on where the leader (0 the source, 1 the artifact) turns; return the last point before."""
        before = (self.source, self.artifact)[leader](low).argmax(1)
        low, high = low.copy(), high.copy()
        for _ in range(HALVINGS):
            middle: Pixels = low + (high - low) * np.float32(0.5)
            between = [(middle != end).any(axis=(1, 2, 3)) for end in (low, high)]
            moving = np.flatnonzero(between[0] & between[1])
            if len(moving) == 0:
                break
            answers = self._ask(rows[moving], middle[moving])
            same = answers[leader].argmax(1) == before[moving]
            low[moving[same]] = middle[moving[same]]
            high[moving[~same]] = middle[moving[~same]]
        return low

    def _ascend(self, best: Pixels, gap: Floats) -> None:
        everything = np.arange(len(best))
        for step in range(self.ascent):
            proposal = self._into_ball(self._squares(best, step), everything)
            seen = gaps(*self._ask(everything, proposal))
            better = seen > gap
            best[better], gap[better] = proposal[better], seen[better]

    def _squares(self, images: Pixels, step: int) -> Pixels:
        """Change a random square of every image by up to twice eps, smaller squares as the steps go on."""
        n, channels, height, width = images.shape
        side = max(1, round(min(height, width) * LARGEST_SQUARE * (1 - step / max(self.ascent, 1))))
        top = self._random.integers(0, height - side + 1, (n, 1, 1, 1))
        left = self._random.integers(0, width - side + 1, (n, 1, 1, 1))
        row, column = np.arange(height).reshape(1, 1, -1, 1), np.arange(width).reshape(1, 1, 1, -1)
        square = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
        change = self._random.choice([-1, 1], (n, channels, 1, 1)) * 2 * self.threat.eps
        return np.asarray(images + square * change, np.float32)

    def _into_ball(self, pixels: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> Pixels:
        center, eps = self.clean[rows], np.float32(self.threat.eps)
        delta = pixels.astype(np.float32) - center
        if self.threat.norm == "Linf":
            delta = np.clip(delta, -eps, eps)
        else:
            length = np.sqrt((delta**2).sum(axis=(1, 2, 3), keepdims=True))
            delta *= np.minimum(1, eps / np.maximum(length, np.float32(1e-12)))
        return np.clip(center + delta, 0, 1)
