"""A faulty artifact fails by the criteria and checks that docs/verification.md lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from robust_export.bundle import Bundle
from tests.verification.fault_cases import FAULT_CASES, FaultCase, failures, verify_case

DOCS = Path(__file__).parents[2] / "docs" / "verification.md"


@pytest.mark.parametrize("case", FAULT_CASES, ids=lambda case: case.name)
def test_faulty_artifact_fails(attacked: Bundle, tmp_path: Path, case: FaultCase) -> None:
    item = verify_case(case, attacked, tmp_path)
    assert case.checks <= failures(item), item.reasons
    assert (item.verdict == "fail") == bool(case.checks)


@pytest.mark.parametrize("case", FAULT_CASES, ids=lambda case: case.name)
def test_docs_list_the_failures(case: FaultCase) -> None:
    (row,) = (line for line in DOCS.read_text().splitlines() if line.startswith(f"| {case.name} |"))
    for check in case.checks:
        assert check in row
    assert ("**none**" in row) == (not case.checks)
