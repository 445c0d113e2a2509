"""Acceptance criteria: the limits an artifact must satisfy, and the verdict pass, fail or undecided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from robust_export.recipe.schema import Precision, Verify
from robust_export.verification.parity import HUGE
from robust_export.verification.results import Bools, Drop, LogitDifferences, Outcome, Parity
from robust_export.verification.statistics import paired_drop, samples_needed

NAMES = ("max_drop", "max_clean_drop", "max_gap", "min_agreement", "max_flip_margin")
"""Names of the limits in a recipe's [verify]."""

DEFAULT_PRECISION: Precision = "fp32"  # for a served model, whose precision is unknown


@dataclass(frozen=True)
class Criteria:
    """The limits for one artifact.

    Attributes:
        max_drop, max_clean_drop: largest drop of robust and of clean accuracy.
        max_abs: largest logit difference, in logits.
        min_agreement: smallest fraction of equal predictions.
        max_flip_margin: largest top-2 margin of the reference model at which the prediction may flip, in
            logits.
        logit_scale, median_margin: of the reference model. The recipe states `max_gap` (here `max_abs`) as a
            multiple of the first, `max_flip_margin` as a multiple of the second.
    """

    max_drop: float
    max_clean_drop: float
    max_abs: float
    min_agreement: float
    max_flip_margin: float
    logit_scale: float
    median_margin: float

    @classmethod
    def for_precision(
        cls, settings: Verify, precision: str, logit_scale: float, median_margin: float
    ) -> Criteria:
        """Return the limits that `settings` state for artifacts of a precision."""
        key: Precision = precision if precision in settings.max_gap else DEFAULT_PRECISION  # type: ignore[assignment]
        clean = settings.max_clean_drop
        return cls(
            settings.max_drop, settings.max_drop if clean is None else clean,
            settings.max_gap[key] * logit_scale, settings.min_agreement[key],
            settings.max_flip_margin[key] * median_margin, logit_scale, median_margin,
        )  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """The verdict, and one reason for every criterion that failed or is undecided."""

    outcome: Outcome
    reasons: list[str]


def criteria_table(settings: Verify) -> dict[str, Any]:
    """Return the limits as verify.json lists them, a table by precision where they depend on it."""
    table = {name: value for name, value in asdict(settings).items() if name in NAMES}
    if table["max_clean_drop"] is None:
        table["max_clean_drop"] = table["max_drop"]
    return table


def measure_drop(reference: Bools, artifact: Bools, max_drop: float) -> Drop:
    """Return the drop of accuracy, given which images [N] each of the two classifies correctly."""
    n = len(reference)
    lost, gained = int((reference & ~artifact).sum()), int((~reference & artifact).sum())
    needed = samples_needed(lost, gained, n, max_drop)
    return Drop((lost - gained) / n, paired_drop(lost, gained, n), needed)


def decide(
    parity: Mapping[str, Parity],
    worst_case: LogitDifferences,
    clean_drop: Drop,
    robust_drop: Drop,
    samples: int,
    criteria: Criteria,
    failed_checks: Sequence[str] = (),
) -> Verdict:
    """Return "fail" if a criterion fails, "undecided" if there are too few images for a drop, else "pass".

    A drop fails if the lower end of its interval exceeds the limit and passes if the upper end does not.

    Args:
        parity: by kind of input, such as "clean".
        samples: number of images of the drops.
        failed_checks: a line for each failed sanity check.
    """
    drops = {
        "clean": (clean_drop, criteria.max_clean_drop),
        "robust": (robust_drop, criteria.max_drop),
    }
    failed = [reason for kind, item in parity.items() for reason in _failed_parity(kind, item, criteria)]
    failed += _failed_worst_case(worst_case, criteria)
    failed += failed_checks
    failed += [_failed_drop(name, *item) for name, item in drops.items() if item[0].ci95[0] > item[1]]
    undecided = {name: item for name, item in drops.items() if item[0].ci95[0] <= item[1] < item[0].ci95[1]}
    open_question = [_undecided(undecided, samples)] if undecided else []
    if failed:
        return Verdict("fail", failed + open_question)
    return Verdict("undecided" if undecided else "pass", open_question)


def _failed_parity(kind: str, item: Parity, criteria: Criteria) -> list[str]:
    if item.non_finite:
        return [f"{item.non_finite} logits are not finite on {kind} inputs"]
    reasons = []
    if item.max_abs > criteria.max_abs:
        reasons.append(f"logits differ by up to {item.max_abs:.3g} on {kind} inputs; {_max_abs(criteria)}")
    if item.top1_agreement < criteria.min_agreement:
        reasons.append(
            f"predictions agree on {item.top1_agreement:.2%} of {kind} inputs; at least "
            f"{criteria.min_agreement:.2%} is required"
        )
    return reasons


def _failed_worst_case(worst: LogitDifferences, criteria: Criteria) -> list[str]:
    reasons = []
    if worst.max_abs > criteria.max_abs:
        largest = f"{worst.max_abs:.3g}" if worst.max_abs < HUGE else "infinity"
        reasons.append(
            f"worst case: logits differ by up to {largest} within eps of an image; {_max_abs(criteria)}"
        )
    if worst.flip_margin > criteria.max_flip_margin:
        share = criteria.max_flip_margin / criteria.median_margin
        reasons.append(
            f"worst case: a prediction flips where the reference model's margin is {worst.flip_margin:.3g}; "
            f"at most {criteria.max_flip_margin:.3g} ({share:g} of its median margin "
            f"{criteria.median_margin:.3g}) is allowed"
        )
    return reasons


def _max_abs(criteria: Criteria) -> str:
    share = criteria.max_abs / criteria.logit_scale if criteria.logit_scale else 0
    return (
        f"at most {criteria.max_abs:.3g} ({share:g} of the logit scale {criteria.logit_scale:.3g}) is allowed"
    )


def _failed_drop(name: str, drop: Drop, limit: float) -> str:
    low, high = drop.ci95
    return (
        f"{name} accuracy dropped by {drop.drop:.2%} (95 % interval {low:.2%} to {high:.2%}); "
        f"at most {limit:.2%} is allowed"
    )


def _undecided(drops: Mapping[str, tuple[Drop, float]], samples: int) -> str:
    """Return one reason for all undecided drops of an artifact."""
    limits = " and ".join(f"{limit:.2%} in {name} accuracy" for name, (_, limit) in drops.items())
    intervals = ", ".join(
        f"{name} {drop.ci95[0]:.2%} to {drop.ci95[1]:.2%}" for name, (drop, _) in drops.items()
    )
    totals = [drop.samples_needed for drop, _ in drops.values()]
    if None in totals:
        need = "more than 10 million samples would be needed to decide, at the observed rates;"
    else:
        total = max(total for total in totals if total is not None)
        need = f"{total - samples:,} more samples needed ({total:,} in all, at the observed rates) to decide"
    return f"undecided: {need} about a drop of more than {limits}; 95 % intervals of the drop: {intervals}"
