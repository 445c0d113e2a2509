"""The verdict: fails for what is broken, stays open where too few images speak, else passes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from robust_export.recipe.schema import Verify
from robust_export.verification.criteria import Criteria, Drop, Verdict, judge, measure_drop, stated
from robust_export.verification.parity import Parity
from robust_export.verification.results import Searched

GOOD = Parity(max_abs=1e-5, mean_abs=1e-6, cosine=1.0, top1_agreement=1.0, non_finite=0)
SMALL = Drop(0.0, (-0.01, 0.01), 360)
OPEN = Drop(0.0, (-0.3, 0.3), 217)
FOUND = Searched(max_abs=2e-5, flips=7, flip_margin=1e-5, evaluations=1000)
GATES = Criteria.of(Verify(), "fp32", scale=10.0, margin=4.0)


def verdict(**given: Any) -> Verdict:
    whole = {
        "parities": {"clean": GOOD}, "searched": FOUND, "clean": SMALL, "robust": SMALL, "samples": 360,
        "gates": GATES, "guards": (),
    }  # fmt: skip
    return judge(**{**whole, **given})


def test_all_gates_hold() -> None:
    assert verdict() == Verdict("pass", [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_abs": 0.0101}, r"differ by up to 0\.0101 on noise inputs; at most 0\.01 "),
        ({"top1_agreement": 0.99}, r"agree on 99\.00% of noise inputs"),
        ({"non_finite": 3}, "3 logits are not finite on noise inputs"),
    ],
)
def test_parity_gates(change: dict[str, float], reason: str) -> None:
    bad = replace(GOOD, **change)  # type: ignore[arg-type]
    found = verdict(parities={"clean": GOOD, "noise": bad})
    assert found.verdict == "fail"
    assert len(found.reasons) == 1
    assert re.search(reason, found.reasons[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_abs": 0.0101}, r"worst case: logits differ by up to 0\.0101 in the ball; at most 0\.01 "),
        ({"flip_margin": 0.0041}, r"sure of it by 0\.0041; at most 0\.004 \(0\.001 of its median margin 4\)"),
        ({"max_abs": float(np.finfo(np.float64).max)}, "infinity"),
    ],
)
def test_gates_of_the_search(change: dict[str, float], reason: str) -> None:
    found = verdict(searched=replace(FOUND, **change))  # type: ignore[arg-type]
    assert found.verdict == "fail"
    assert len(found.reasons) == 1
    assert re.search(reason, found.reasons[0])


def test_flips_without_a_margin_are_no_reason_to_fail() -> None:
    """Bisection finds them on every boundary."""
    assert verdict(searched=replace(FOUND, flips=10_000)).verdict == "pass"


def test_gaps_and_margins_are_judged_in_the_units_of_the_source() -> None:
    smaller = Criteria.of(Verify(), "fp32", scale=1.0, margin=0.4)
    assert verdict(parities={"clean": replace(GOOD, max_abs=0.005)}).verdict == "pass"
    assert verdict(parities={"clean": replace(GOOD, max_abs=0.005)}, gates=smaller).verdict == "fail"
    assert verdict(searched=replace(FOUND, flip_margin=0.001)).verdict == "pass"
    assert verdict(searched=replace(FOUND, flip_margin=0.001), gates=smaller).verdict == "fail"


def test_a_lower_precision_has_gates_of_its_own_and_a_server_those_of_fp32() -> None:
    settings = Verify(max_gap={"fp16": 0.5})
    assert Criteria.of(settings, "fp16", 10.0, 4.0).max_gap == 5.0
    assert Criteria.of(settings, "fp32", 10.0, 4.0) == GATES
    assert Criteria.of(settings, "unknown", 10.0, 4.0) == GATES


def test_clean_accuracy_may_have_a_gate_of_its_own() -> None:
    strict = Criteria.of(Verify(max_clean_drop=0.005), "fp32", 10.0, 4.0)
    assert (strict.max_drop, strict.max_clean_drop) == (0.02, 0.005)
    found = verdict(gates=strict)
    assert found.verdict == "undecided"
    assert [reason.split(":")[0] for reason in found.reasons] == ["clean accuracy"]
    assert stated(Verify())["max_clean_drop"] == 0.02


def test_a_drop_that_is_surely_too_large_fails() -> None:
    found = verdict(robust=Drop(0.1, (0.05, 0.15), 360))
    assert found.verdict == "fail"
    assert "robust accuracy dropped by 10.00%" in found.reasons[0]


def test_a_drop_that_may_be_too_large_is_undecided_and_says_how_many_more_samples_would_do() -> None:
    found = verdict(clean=OPEN, samples=50)
    assert found.verdict == "undecided"
    assert "undecided: 167 more samples needed (217 samples in all" in found.reasons[0]


def test_what_no_number_of_samples_would_decide() -> None:
    found = verdict(clean=replace(OPEN, samples_needed=None))
    assert "no number of samples would decide" in found.reasons[0]


def test_a_failure_outweighs_an_open_question() -> None:
    found = verdict(parities={"clean": replace(GOOD, top1_agreement=0.5)}, clean=OPEN)
    assert found.verdict == "fail"
    assert len(found.reasons) == 2


def test_a_guard_that_fails_is_a_reason() -> None:
    assert verdict(guards=["the same input twice: it differs"]) == Verdict(
        "fail", ["the same input twice: it differs"]
    )


def test_gains_do_not_hide_what_they_do_not_outweigh() -> None:
    """The drop is of pairs: 30 lost and 10 gained of 400 are 5 %."""
    source, artifact = np.ones(400, bool), np.ones(400, bool)
    artifact[:30] = False
    source[30:40] = False
    drop = measure_drop(source, artifact, 0.02)
    assert drop.drop == pytest.approx(0.05)
    assert drop.ci95[0] < 0.05 < drop.ci95[1]


def test_a_better_artifact_passes() -> None:
    source, artifact = np.ones(400, bool), np.ones(400, bool)
    source[:40] = False
    assert verdict(robust=measure_drop(source, artifact, 0.02)).verdict == "pass"
