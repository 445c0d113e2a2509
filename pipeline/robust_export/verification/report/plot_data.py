"""Data for the plots and images of report.html: example images, and logit differences of single inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robust_export.verification.attack_artifact import ArtifactAttacks
from robust_export.verification.examples import Evaluation, Examples
from robust_export.verification.parity import max_abs_differences
from robust_export.verification.results import ArtifactReport, Example, InputDifferences, PlotData

EXAMPLES = 8
SEARCH_INPUTS = 1500  # of an artifact: half those with flips and the largest differences, half spread evenly


def plot_data(
    broken_by: Sequence[str], reference: Evaluation, attacks: Sequence[ArtifactAttacks],
    reports: Sequence[ArtifactReport],
) -> PlotData:  # fmt: skip
    """Collect the data.

    Args:
        broken_by: the attack of AutoAttack that broke each image.
        attacks, reports: of the same artifacts, in the same order.
    """
    by_title = {report.title: item for report, item in zip(reports, attacks, strict=True)}
    expected = reference.parity_logits()
    evaluations = {"reference": reference} | {title: item.evaluation for title, item in by_title.items()}
    return PlotData(
        examples=_examples(reference.examples, broken_by, evaluations),
        search={title: _thin(item.searched) for title, item in by_title.items()},
        max_abs={
            title: {
                kind: max_abs_differences(expected[kind], actual)
                for kind, actual in item.evaluation.parity_logits().items()
            }
            for title, item in by_title.items()
        },
    )


def _examples(
    examples: Examples, broken_by: Sequence[str], evaluations: dict[str, Evaluation]
) -> list[Example]:
    """Return correctly classified images: up to half of them broken by AutoAttack, the others robust."""
    autoattack, pgd = examples.get("autoattack"), examples.get("pgd")
    labels, half = examples.labels, EXAMPLES // 2
    broken = [
        Example(
            int(labels[i]), examples.clean[i], autoattack.pixels[at], broken_by[i],
            {name: _predictions(e, "autoattack", i, at) for name, e in evaluations.items()},
        )
        for at, i in enumerate(autoattack.rows[:half])
    ]  # fmt: skip
    robust = np.flatnonzero(evaluations["reference"].robust)[: EXAMPLES - len(broken)]
    return broken + [
        Example(
            int(labels[i]), examples.clean[i], pgd.pixels[i], "pgd",
            {name: _predictions(e, "pgd", i, i) for name, e in evaluations.items()},
        )
        for i in robust
    ]  # fmt: skip


def _predictions(evaluation: Evaluation, attack: str, image: int, row: int) -> tuple[int, int]:
    """Return the predictions on an image and on row `row` of an attack's examples."""
    logits = evaluation.logits
    return int(logits["clean"][image].argmax()), int(logits[attack][row].argmax())


def _thin(inputs: InputDifferences) -> InputDifferences:
    """Return about SEARCH_INPUTS inputs, those with flips and large differences first."""
    order = np.lexsort((-inputs.max_abs, ~inputs.flipped))
    half = SEARCH_INPUTS // 2
    chosen = np.concatenate([order[:half], order[half :: max(1, len(order) // half)]])
    return InputDifferences(inputs.margin[chosen], inputs.max_abs[chosen], inputs.flipped[chosen])
