"""The verdict: fails for what is broken, stays open where too few images speak, else passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from robust_export.config import Verify
from robust_export.verification.gates import Drop, judge, measure_drop
from robust_export.verification.parity import Parity

GOOD = Parity(max_abs=1e-5, mean_abs=1e-6, cosine=1.0, top1_agreement=1.0, non_finite=0)
SMALL = Drop(0.0, (-0.01, 0.01), 360)
GATES = Verify()


def test_all_gates_hold() -> None:
    verdict = judge({"clean": GOOD}, {"robust": SMALL}, 10.0, GATES)
    assert verdict.verdict == "pass"
    assert verdict.reasons == []


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
    verdict = judge({"clean": GOOD, "noise": bad}, {"robust": SMALL}, 10.0, GATES)
    assert verdict.verdict == "fail"
    assert len(verdict.reasons) == 1
    assert pytest.importorskip("re").search(reason, verdict.reasons[0])


def test_the_gap_is_judged_in_units_of_the_logits() -> None:
    p = replace(GOOD, max_abs=0.005)
    assert judge({"clean": p}, {}, 10.0, GATES).verdict == "pass"
    assert judge({"clean": p}, {}, 1.0, GATES).verdict == "fail"


def test_a_drop_that_is_surely_too_large_fails() -> None:
    verdict = judge({}, {"robust": Drop(0.1, (0.05, 0.15), 360)}, 1.0, GATES)
    assert verdict.verdict == "fail"
    assert "robust accuracy dropped by 10.00%" in verdict.reasons[0]


def test_a_drop_that_may_be_too_large_is_undecided_and_says_how_many_samples_would_do() -> None:
    verdict = judge({}, {"clean": Drop(0.0, (-0.3, 0.3), 217)}, 1.0, GATES)
    assert verdict.verdict == "undecided"
    assert "217 samples in all" in verdict.reasons[0]


def test_a_failure_outweighs_an_open_question() -> None:
    broken = replace(GOOD, top1_agreement=0.5)
    verdict = judge({"clean": broken}, {"clean": Drop(0.0, (-0.3, 0.3), 217)}, 1.0, GATES)
    assert verdict.verdict == "fail"
    assert len(verdict.reasons) == 2


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
    drop = measure_drop(source, artifact, 0.02)
    assert judge({}, {"robust": drop}, 1.0, GATES).verdict == "pass"
