"""The gates an artifact must pass, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from robust_export.config import Verify
from robust_export.verification.parity import Parity
from robust_export.verification.statistics import Interval, paired_drop, samples_needed

Outcome = Literal["pass", "fail", "undecided"]
Correct = npt.NDArray[np.bool_]  # [N], which images a classifier gets right


@dataclass(frozen=True)
class Drop:
    """What is lost from source to artifact, on the same images."""

    drop: float
    ci95: Interval
    samples_needed: int | None  # in all, to decide at the rates seen; None: no number would


@dataclass(frozen=True)
class Verdict:
    verdict: Outcome
    reasons: list[str]  # one for every gate that did not hold


def measure_drop(source: Correct, artifact: Correct, max_drop: float) -> Drop:
    """Return how much accuracy the artifact lost against the source."""
    n = len(source)
    lost, gained = int((source & ~artifact).sum()), int((~source & artifact).sum())
    needed = samples_needed(lost, gained, n, max_drop)
    return Drop((lost - gained) / n, paired_drop(lost, gained, n), needed)


def judge(parities: Mapping[str, Parity], drops: Mapping[str, Drop], scale: float, gates: Verify) -> Verdict:
    """Return "fail" if a gate is broken, "undecided" if too few images speak, else "pass".

    Args:
        parities: by kind of input, such as "clean".
        drops: by kind of accuracy, such as "robust".
        scale: the source's logit scale, the unit of `gates.max_gap`.
    """
    failed = [reason for name, p in parities.items() for reason in _parity_reasons(name, p, scale, gates)]
    open_questions = []
    for name, drop in drops.items():
        low, high = drop.ci95
        if low > gates.max_drop:
            failed.append(
                f"{name} accuracy dropped by {drop.drop:.2%} (95 % interval {low:.2%} to "
                f"{high:.2%}); at most {gates.max_drop:.2%} is allowed"
            )
        elif high > gates.max_drop:
            open_questions.append(f"{name} accuracy: {_undecided(drop, gates.max_drop)}")
    if failed:
        return Verdict("fail", failed + open_questions)
    return Verdict("undecided" if open_questions else "pass", open_questions)


def _parity_reasons(name: str, p: Parity, scale: float, gates: Verify) -> list[str]:
    if p.non_finite:
        return [f"{p.non_finite} logits are not finite on {name} inputs"]
    reasons = []
    if p.max_abs > gates.max_gap * scale:
        reasons.append(
            f"logits differ by up to {p.max_abs:.3g} on {name} inputs; at most "
            f"{gates.max_gap * scale:.3g} ({gates.max_gap:g} of the logit scale {scale:.3g}) is allowed"
        )
    if p.top1_agreement < gates.min_agreement:
        reasons.append(
            f"decisions agree on {p.top1_agreement:.2%} of {name} inputs; at least "
            f"{gates.min_agreement:.2%} is demanded"
        )
    return reasons


def _undecided(drop: Drop, max_drop: float) -> str:
    low, high = drop.ci95
    enough = f"{drop.samples_needed:,} samples" if drop.samples_needed else "no number of samples"
    return (
        f"undecided, the drop may be as large as {high:.2%} (95 % interval from {low:.2%}) and "
        f"{max_drop:.2%} is allowed; {enough} in all would decide at the rates seen"
    )
