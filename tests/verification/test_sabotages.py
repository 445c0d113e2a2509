"""A spoiled artifact fails, for the right reason; docs/verification.md says which check sees which."""

from __future__ import annotations

from pathlib import Path

import pytest

from robust_export.bundle import Bundle
from tests.verification.sabotages import SABOTAGES, Sabotage, caught_by, judge

DOCS = Path(__file__).parents[2] / "docs" / "verification.md"


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda s: s.name)
def test_a_spoiled_artifact_fails_for_the_right_reason(
    trained: Path, tmp_path: Path, sabotage: Sabotage
) -> None:
    item = judge(sabotage, Bundle.open(trained), tmp_path)
    assert sabotage.checks <= caught_by(item), item.reasons
    assert (item.verdict == "fail") == bool(sabotage.checks)


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda s: s.name)
def test_the_docs_say_what_catches_it(sabotage: Sabotage) -> None:
    (row,) = (line for line in DOCS.read_text().splitlines() if line.startswith(f"| {sabotage.name} |"))
    for check in sabotage.checks:
        assert check in row
    assert ("**nothing**" in row) == (not sabotage.checks)
