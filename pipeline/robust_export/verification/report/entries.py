"""The artifacts as the page shows them, each under a letter, and the verdict in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase

from robust_export.recipe.schema import Verify
from robust_export.verification.criteria import NAMES, Criteria
from robust_export.verification.parity import HUGE
from robust_export.verification.report.wording import number, points
from robust_export.verification.results import ArtifactReport, Report, SanityCheck, WorstCase, title

SEVERITY = ("fail", "warn", "ok")
COLOURS = 6  # --c0 to --c5 of style.css


@dataclass(frozen=True)
class Entry:
    """An artifact, and what the page calls it."""

    letter: str  # A, B, ... Z, AA, ...
    colour: int  # of COLOURS
    title: str
    item: ArtifactReport
    gates: Criteria  # in logits, for its precision

    @property
    def max_gap(self) -> float:
        """The largest |difference| of a logit on any input at all."""
        return max([p.max_abs for p in self.item.parity.values()] + [self.item.worst_case.max_abs])


def entries(report: Report) -> list[Entry]:
    """Return all artifacts of a report, in its order."""
    source = report.source
    settings = Verify(**{name: report.gates[name] for name in NAMES if name in report.gates})
    return [
        Entry(
            _letter(i), i % COLOURS, title(item), item,
            Criteria.of(settings, item.precision, source.logit_scale, source.median_margin),
        )
        for i, item in enumerate(report.artifacts)
    ]  # fmt: skip


def _letter(i: int) -> str:
    first = ascii_uppercase[i // 26 - 1] if i >= 26 else ""
    return first + ascii_uppercase[i % 26]


def sentence(report: Report, shown: list[Entry]) -> str:
    """Return what the verdict means, for somebody who reads nothing else."""
    outcome = report.verdict
    if not shown:
        return "No artifact was judged, so nothing is known of what would be shipped."
    by = {name: [e.letter for e in shown if e.item.verdict == name] for name in ("pass", "fail", "undecided")}
    if outcome == "pass":
        return _passed(shown)
    missing = len(report.not_run)
    rest = [
        f"{_count(len(by['pass']), len(shown))} passed" if by["pass"] else "",
        f"{_count(len(by['undecided']), len(shown))} undecided"
        if outcome == "fail" and by["undecided"]
        else "",
        f"{missing} could not be run here" if missing else "",
    ]
    others = f" ({'; '.join(text for text in rest if text)})" if any(rest) else ""
    if outcome == "fail":
        return _failed(by["fail"], len(shown), others)
    if by["undecided"]:
        return (
            "Nothing that was checked is broken, but there are too few images to rule out that more accuracy "
            f"was lost than is allowed: {', '.join(by['undecided'])}{others}."
        )
    return f"What was run passed, but not everything was{others}."


def _failed(failed: list[str], judged: int, others: str) -> str:
    if judged == 1:
        return f"The artifact is not what was trained: it breaks at least one gate{others}. Do not use it."
    one = len(failed) == 1
    breaks = "is not what was trained: it breaks" if one else "are not what was trained: they break"
    start = f"{len(failed)} of {judged} artifacts {breaks} at least one gate{others}."
    return f"{start} Do not use {'it' if one else 'them'}: {', '.join(failed)}."


def _passed(shown: list[Entry]) -> str:
    worst = max(shown, key=lambda e: e.item.robust_drop.ci95[1])
    allowed = worst.gates.max_drop
    high = max(worst.item.robust_drop.ci95[1], 0.0)
    who = f"All {len(shown)} artifacts are as robust as the network they were"
    if len(shown) == 1:
        who = "The artifact is as robust as the network it was"
    return (
        f"{who} exported from: at most {points(high, allowed, 1)} of robust accuracy was lost (95% "
        f"confidence), {points(allowed, allowed)} is allowed."
    )


def _count(some: int, of: int) -> str:
    return "all" if some == of else f"{some}"


def severe_first(guards: list[SanityCheck]) -> list[SanityCheck]:
    """Return checks with those that did not come out clean on top."""
    return sorted(guards, key=lambda guard: SEVERITY.index(guard.outcome))


def warnings(report: Report, shown: list[Entry]) -> list[tuple[Entry | None, SanityCheck]]:
    """Return every check that did not come out clean, and whose it is (None: the source's), worst first."""
    found: list[tuple[Entry | None, SanityCheck]] = [(None, guard) for guard in report.source.guards]
    found += [(entry, guard) for entry in shown for guard in entry.item.guards]
    bad = [(entry, guard) for entry, guard in found if guard.outcome != "ok"]
    return sorted(bad, key=lambda row: SEVERITY.index(row[1].outcome))


def hidden(worst: WorstCase) -> str:
    """Return how much of the worst case random inputs hide."""
    random = worst.random
    gap = "an infinite gap" if worst.max_abs >= HUGE else f"a gap of {number(worst.max_abs)}"
    found = f"{gap} and {_flips(worst.flips)} in {worst.evaluations:,} inputs"
    chance = f"{random.evaluations:,} random inputs show {number(random.max_abs)} and {_flips(random.flips)}"
    hides = []
    if worst.max_abs >= HUGE > random.max_abs:
        hides.append("a gap that is infinite")
    elif random.max_abs > 0 and worst.max_abs / random.max_abs >= 1.05:
        hides.append(f"a gap {number(worst.max_abs / random.max_abs)} times as large as the one they show")
    elif random.max_abs == 0 < worst.max_abs:
        hides.append("the whole gap")
    if worst.flips > random.flips:
        hides.append(f"{worst.flips - random.flips:,} of {_flips(worst.flips)}")
    told = f"Random inputs hide {' and '.join(hides)}." if hides else "Here, random inputs hide nothing."
    return f"The search found {found}; {chance}. {told}"


def _flips(count: int) -> str:
    return f"{count:,} flip{'' if count == 1 else 's'}"
