"""What the page draws: example images, gaps of single inputs, and the points that the search visited."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robust_export.verification.attack import ArtifactEvidence
from robust_export.verification.examples import Examples, Score
from robust_export.verification.parity import gaps
from robust_export.verification.results import ArtifactReport, Example, Pictures, Points, title

SHOWN = 8  # images
DRAWN = 1500  # points of an artifact: the most telling ones, and an even choice of the others


def pictures(
    broken_by: Sequence[str], source: Score, evidence: Sequence[ArtifactEvidence],
    reports: Sequence[ArtifactReport],
) -> Pictures:  # fmt: skip
    """Collect what the page draws."""
    titles = [title(report) for report in reports]
    ours = source.compared()
    return Pictures(
        _examples(
            source.examples,
            broken_by,
            {"source": source} | {t: e.score for t, e in zip(titles, evidence, strict=True)},
        ),
        {t: _thin(e.seen) for t, e in zip(titles, evidence, strict=True)},
        {
            t: {kind: gaps(ours[kind], theirs) for kind, theirs in e.score.compared().items()}
            for t, e in zip(titles, evidence, strict=True)
        },
    )


def _examples(examples: Examples, broken_by: Sequence[str], scores: dict[str, Score]) -> list[Example]:
    """Return images that the source reads right: half of them AutoAttack broke, half withstand PGD."""
    found, descended = examples.get("autoattack"), examples.get("pgd")
    labels, half = examples.labels, SHOWN // 2
    broken = [
        Example(
            int(labels[i]), examples.clean[i], found.pixels[at], broken_by[i],
            {name: _decisions(s, "autoattack", i, at) for name, s in scores.items()},
        )
        for at, i in enumerate(found.rows[:half])
    ]  # fmt: skip
    withstood = np.flatnonzero(scores["source"].robust)[: SHOWN - len(broken)]
    return broken + [
        Example(
            int(labels[i]), examples.clean[i], descended.pixels[i], "pgd",
            {name: _decisions(s, "pgd", i, i) for name, s in scores.items()},
        )
        for i in withstood
    ]  # fmt: skip


def _decisions(score: Score, name: str, row: int, at: int) -> tuple[int, int]:
    return int(score.logits["clean"][row].argmax()), int(score.logits[name][at].argmax())


def _thin(seen: Points) -> Points:
    """Return flips and large gaps first, then every so-manieth of the rest."""
    order = np.lexsort((-seen.gap, ~seen.flipped))
    first = order[: DRAWN // 2]
    rest = order[DRAWN // 2 :: max(1, len(order) // (DRAWN // 2))]
    chosen = np.concatenate([first, rest])
    return Points(seen.margin[chosen], seen.gap[chosen], seen.flipped[chosen])
