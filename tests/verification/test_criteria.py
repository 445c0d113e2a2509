"""The verdict: fail, undecided or pass."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from robust_export.recipe.schema import Verify
from robust_export.verification.criteria import Criteria, Verdict, criteria_table, decide, measure_drop
from robust_export.verification.results import Drop, LogitDifferences, Parity

GOOD = Parity(max_abs=1e-5, mean_abs=1e-6, cosine=1.0, top1_agreement=1.0, non_finite=0)
SMALL = Drop(0.0, (-0.01, 0.01), 360)
OPEN = Drop(0.0, (-0.3, 0.3), 217)
WORST = LogitDifferences(max_abs=2e-5, flips=7, flip_margin=1e-5, evaluations=1000)
CRITERIA = Criteria.for_precision(Verify(), "fp32", logit_scale=10.0, median_margin=4.0)


def verdict(**changes: Any) -> Verdict:
    arguments = {
        "parity": {"clean": GOOD}, "worst_case": WORST, "clean_drop": SMALL, "robust_drop": SMALL,
        "samples": 360, "criteria": CRITERIA, "failed_checks": (),
    }  # fmt: skip
    return decide(**{**arguments, **changes})


def test_all_criteria_hold() -> None:
    assert verdict() == Verdict("pass", [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_abs": 0.0101}, r"differ by up to 0\.0101 on noise inputs; at most 0\.01 "),
        ({"top1_agreement": 0.99}, r"predictions agree on 99\.00% of noise inputs"),
        ({"non_finite": 3}, "3 logits are not finite on noise inputs"),
    ],
)
def test_parity_criteria(change: dict[str, float], reason: str) -> None:
    bad = replace(GOOD, **change)  # type: ignore[arg-type]
    result = verdict(parity={"clean": GOOD, "noise": bad})
    assert result.outcome == "fail"
    assert len(result.reasons) == 1
    assert re.search(reason, result.reasons[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"max_abs": 0.0101},
            r"worst case: logits differ by up to 0\.0101 within eps of an image; at most 0\.01 ",
        ),
        ({"flip_margin": 0.0041}, r"margin is 0\.0041; at most 0\.004 \(0\.001 of its median margin 4\)"),
        ({"max_abs": float(np.finfo(np.float64).max)}, "infinity"),
    ],
)
def test_worst_case_criteria(change: dict[str, float], reason: str) -> None:
    result = verdict(worst_case=replace(WORST, **change))  # type: ignore[arg-type]
    assert result.outcome == "fail"
    assert len(result.reasons) == 1
    assert re.search(reason, result.reasons[0])


def test_number_of_flips_is_no_criterion() -> None:
    """Bisection finds flips with tiny margins on every boundary."""
    assert verdict(worst_case=replace(WORST, flips=10_000)).outcome == "pass"


def test_limits_scale_with_the_reference_model() -> None:
    smaller = Criteria.for_precision(Verify(), "fp32", logit_scale=1.0, median_margin=0.4)
    assert verdict(parity={"clean": replace(GOOD, max_abs=0.005)}).outcome == "pass"
    assert verdict(parity={"clean": replace(GOOD, max_abs=0.005)}, criteria=smaller).outcome == "fail"
    assert verdict(worst_case=replace(WORST, flip_margin=0.001)).outcome == "pass"
    assert verdict(worst_case=replace(WORST, flip_margin=0.001), criteria=smaller).outcome == "fail"


def test_limits_by_precision() -> None:
    settings = Verify(max_gap={"fp16": 0.5})
    assert Criteria.for_precision(settings, "fp16", 10.0, 4.0).max_abs == 5.0
    assert Criteria.for_precision(settings, "fp32", 10.0, 4.0) == CRITERIA
    assert Criteria.for_precision(settings, "unknown", 10.0, 4.0) == CRITERIA


def test_limit_of_the_clean_drop() -> None:
    strict = Criteria.for_precision(Verify(max_clean_drop=0.005), "fp32", 10.0, 4.0)
    assert (strict.max_drop, strict.max_clean_drop) == (0.02, 0.005)
    result = verdict(criteria=strict)
    assert result.outcome == "undecided"
    assert "0.50% in clean accuracy;" in result.reasons[0]
    assert criteria_table(Verify())["max_clean_drop"] == 0.02


def test_drop_above_the_limit_fails() -> None:
    result = verdict(robust_drop=Drop(0.1, (0.05, 0.15), 360))
    assert result.outcome == "fail"
    assert "robust accuracy dropped by 10.00%" in result.reasons[0]


def test_undecided_says_how_many_samples_are_needed() -> None:
    result = verdict(clean_drop=OPEN, samples=50)
    assert result.outcome == "undecided"
    assert "undecided: 167 more samples needed (217 in all, " in result.reasons[0]


def test_undecided_drops_give_one_reason() -> None:
    other = Drop(0.01, (-0.1, 0.2), 500)
    result = verdict(clean_drop=OPEN, robust_drop=other, samples=50)
    (reason,) = result.reasons
    assert "450 more samples needed (500 in all, " in reason
    assert "more than 2.00% in clean accuracy and 2.00% in robust accuracy" in reason
    assert reason.endswith("clean -30.00% to 30.00%, robust -10.00% to 20.00%")


def test_drop_that_no_number_of_samples_decides() -> None:
    result = verdict(clean_drop=replace(OPEN, samples_needed=None))
    assert "more than 10 million samples would be needed to decide" in result.reasons[0]


def test_fail_outweighs_undecided() -> None:
    result = verdict(parity={"clean": replace(GOOD, top1_agreement=0.5)}, clean_drop=OPEN)
    assert result.outcome == "fail"
    assert len(result.reasons) == 2


def test_failed_check_is_a_reason() -> None:
    assert verdict(failed_checks=["the same input twice: it differs"]) == Verdict(
        "fail", ["the same input twice: it differs"]
    )


def test_drop_is_lost_minus_gained() -> None:
    """30 lost and 10 gained of 400 are a drop of 5 %."""
    reference, artifact = np.ones(400, bool), np.ones(400, bool)
    artifact[:30] = False
    reference[30:40] = False
    drop = measure_drop(reference, artifact, 0.02)
    assert drop.drop == pytest.approx(0.05)
    assert drop.ci95[0] < 0.05 < drop.ci95[1]


def test_gain_passes() -> None:
    reference, artifact = np.ones(400, bool), np.ones(400, bool)
    reference[:40] = False
    assert verdict(robust_drop=measure_drop(reference, artifact, 0.02)).outcome == "pass"
