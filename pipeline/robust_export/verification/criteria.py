"""The gates an artifact must pass, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from robust_export.recipe.schema import Precision, Verify
from robust_export.verification.parity import HUGE, Parity
from robust_export.verification.statistics import Interval, paired_drop, samples_needed

if TYPE_CHECKING:
    from robust_export.verification.results import Searched

Outcome = Literal["pass", "fail", "undecided"]
Correct = npt.NDArray[np.bool_]  # [N], which images a classifier gets right

NAMES = ("max_drop", "max_clean_drop", "max_gap", "min_agreement", "max_flip_margin")
DEFAULT: Precision = "fp32"  # whose gates hold for a server, which does not say what it computes in


@dataclass(frozen=True)
class Drop:
    """What is lost from source to artifact, on the same images."""

    drop: float
    ci95: Interval
    samples_needed: int | None  # in all, to decide at the rates seen; None: no number would


@dataclass(frozen=True)
class Criteria:
    """The gates of one artifact: of its precision, in the units of its source.

    Attributes:
        max_drop, max_clean_drop: of robust and of clean accuracy.
        max_gap, max_flip_margin: in logits; `scale` and `margin` are the source's logit scale and its median
            margin, which the recipe's gates are multiples of.
    """

    max_drop: float
    max_clean_drop: float
    max_gap: float
    min_agreement: float
    max_flip_margin: float
    scale: float
    margin: float

    @classmethod
    def of(cls, settings: Verify, precision: str, scale: float, margin: float) -> Criteria:
        """Return the gates that `settings` set for an artifact of a precision."""
        key: Precision = precision if precision in settings.max_gap else DEFAULT  # type: ignore[assignment]
        clean = settings.max_clean_drop
        return cls(
            settings.max_drop, settings.max_drop if clean is None else clean,
            settings.max_gap[key] * scale, settings.min_agreement[key],
            settings.max_flip_margin[key] * margin, scale, margin,
        )  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    verdict: Outcome
    reasons: list[str]  # one for every gate that did not hold


def stated(settings: Verify) -> dict[str, Any]:
    """Return the gates as verify.json holds them, a table by precision where they depend on it."""
    given = {name: value for name, value in asdict(settings).items() if name in NAMES}
    if given["max_clean_drop"] is None:
        given["max_clean_drop"] = given["max_drop"]
    return given


def measure_drop(source: Correct, artifact: Correct, max_drop: float) -> Drop:
    """Return how much accuracy the artifact lost against the source."""
    n = len(source)
    lost, gained = int((source & ~artifact).sum()), int((~source & artifact).sum())
    needed = samples_needed(lost, gained, n, max_drop)
    return Drop((lost - gained) / n, paired_drop(lost, gained, n), needed)


def judge(
    parities: Mapping[str, Parity],
    searched: Searched,
    clean: Drop,
    robust: Drop,
    samples: int,
    gates: Criteria,
    guards: Sequence[str] = (),
) -> Verdict:
    """Return "fail" if a gate is broken, "undecided" if too few images speak, else "pass".

    Args:
        parities: by kind of input, such as "clean".
        searched: what the search for the worst case found.
        clean, robust: what accuracy was lost.
        samples: images that the drops are measured on.
        guards: what failed of the checks against fooling ourselves.
    """
    failed = [reason for name, p in parities.items() for reason in _parity_reasons(name, p, gates)]
    failed += _search_reasons(searched, gates)
    failed += guards
    open_questions = []
    for name, drop, allowed in (
        ("clean", clean, gates.max_clean_drop),
        ("robust", robust, gates.max_drop),
    ):
        low, high = drop.ci95
        if low > allowed:
            failed.append(
                f"{name} accuracy dropped by {drop.drop:.2%} (95 % interval {low:.2%} to {high:.2%}); "
                f"at most {allowed:.2%} is allowed"
            )
        elif high > allowed:
            open_questions.append(f"{name} accuracy: {_undecided(drop, samples, allowed)}")
    if failed:
        return Verdict("fail", failed + open_questions)
    return Verdict("undecided" if open_questions else "pass", open_questions)


def _parity_reasons(name: str, p: Parity, gates: Criteria) -> list[str]:
    if p.non_finite:
        return [f"{p.non_finite} logits are not finite on {name} inputs"]
    reasons = []
    if p.max_abs > gates.max_gap:
        reasons.append(f"logits differ by up to {p.max_abs:.3g} on {name} inputs; {_allowed_gap(gates)}")
    if p.top1_agreement < gates.min_agreement:
        reasons.append(
            f"decisions agree on {p.top1_agreement:.2%} of {name} inputs; at least "
            f"{gates.min_agreement:.2%} is demanded"
        )
    return reasons


def _search_reasons(searched: Searched, gates: Criteria) -> list[str]:
    reasons = []
    if searched.max_abs > gates.max_gap:
        found = f"{searched.max_abs:.3g}" if searched.max_abs < HUGE else "infinity"
        reasons.append(f"worst case: logits differ by up to {found} in the ball; {_allowed_gap(gates)}")
    if searched.flip_margin > gates.max_flip_margin:
        reasons.append(
            f"worst case: a decision flips where the source is sure of it by {searched.flip_margin:.3g}; "
            f"at most {gates.max_flip_margin:.3g} ({gates.max_flip_margin / gates.margin:g} of its median "
            f"margin {gates.margin:.3g}) is allowed"
        )
    return reasons


def _allowed_gap(gates: Criteria) -> str:
    share = gates.max_gap / gates.scale if gates.scale else 0
    return f"at most {gates.max_gap:.3g} ({share:g} of the logit scale {gates.scale:.3g}) is allowed"


def _undecided(drop: Drop, samples: int, allowed: float) -> str:
    low, high = drop.ci95
    if drop.samples_needed is None:
        more = "no number of samples would decide at the rates seen"
    else:
        more = (
            f"{drop.samples_needed - samples:,} more samples needed ({drop.samples_needed:,} samples in all, "
            "at the rates seen)"
        )
    return (
        f"undecided: {more}; the drop may be as large as {high:.2%} (95 % interval from {low:.2%}), and "
        f"{allowed:.2%} is allowed"
    )
