"""Entries of report.html: the artifacts, each with a letter, a colour and its limits; the failed checks."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase

from robust_export.recipe.schema import Verify
from robust_export.verification.criteria import NAMES, Criteria
from robust_export.verification.results import ArtifactReport, Report, SanityCheck

SEVERITY = ("fail", "warn", "ok")
COLOURS = 6  # --c0 to --c5 of style.css


@dataclass(frozen=True)
class Entry:
    """An artifact on the page.

    Attributes:
        letter: A, B, ... Z, AA, ...
        colour: below COLOURS.
        criteria: limits for its precision.
    """

    letter: str
    colour: int
    item: ArtifactReport
    criteria: Criteria

    @property
    def title(self) -> str:
        return self.item.title

    @property
    def max_abs(self) -> float:
        """The largest logit difference on all inputs."""
        return max([p.max_abs for p in self.item.parity.values()] + [self.item.worst_case.max_abs])


def make_entries(report: Report) -> list[Entry]:
    """Return the entries of all artifacts, in the order of the report."""
    reference = report.reference
    settings = Verify(**{name: report.criteria[name] for name in NAMES if name in report.criteria})
    return [
        Entry(
            _letter(i), i % COLOURS, item,
            Criteria.for_precision(
                settings, item.precision, reference.logit_scale, reference.median_margin
            ),
        )
        for i, item in enumerate(report.artifacts)
    ]  # fmt: skip


def _letter(i: int) -> str:
    first = ascii_uppercase[i // 26 - 1] if i >= 26 else ""
    return first + ascii_uppercase[i % 26]


def severe_first(checks: list[SanityCheck]) -> list[SanityCheck]:
    """Return the checks, failures and warnings first."""
    return sorted(checks, key=lambda check: SEVERITY.index(check.outcome))


def failed_checks(report: Report, entries: list[Entry]) -> list[tuple[Entry | None, SanityCheck]]:
    """Return all checks that failed or warn, with their entry (None: the reference model), failures first."""
    checks: list[tuple[Entry | None, SanityCheck]] = [(None, check) for check in report.reference.checks]
    checks += [(entry, check) for entry in entries for check in entry.item.checks]
    failed = [(entry, check) for entry, check in checks if check.outcome != "ok"]
    return sorted(failed, key=lambda row: SEVERITY.index(row[1].outcome))
