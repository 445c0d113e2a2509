"""Sentences of report.html: what the verdict means, and what random inputs would have missed."""

from __future__ import annotations

from robust_export.verification.parity import HUGE
from robust_export.verification.report.entries import Entry
from robust_export.verification.report.formats import number, points
from robust_export.verification.results import Report, WorstCase


def verdict_sentence(report: Report, entries: list[Entry]) -> str:
    """Return what the verdict means, for a reader of nothing else."""
    outcome = report.verdict
    if not entries:
        return "No artifact was verified."
    if outcome == "pass":
        return _passed(entries)
    letters = {
        name: [e.letter for e in entries if e.item.verdict == name] for name in ("pass", "fail", "undecided")
    }
    not_run = len(report.not_run)
    rest = [
        f"{_count(len(letters['pass']), len(entries))} passed" if letters["pass"] else "",
        f"{len(letters['undecided'])} undecided" if outcome == "fail" and letters["undecided"] else "",
        f"{not_run} could not be run on this machine" if not_run else "",
    ]
    others = f" ({'; '.join(text for text in rest if text)})" if any(rest) else ""
    if outcome == "fail":
        return _failed(letters["fail"], len(entries), others)
    if letters["undecided"]:
        return (
            "No criterion failed, but there are too few images to exclude that more accuracy was lost than "
            f"is allowed: {', '.join(letters['undecided'])}{others}."
        )
    return f"All artifacts that were run passed, but not all were run{others}."


def _failed(failed: list[str], count: int, others: str) -> str:
    if count == 1:
        start = "The artifact is not equivalent to the model"
        return f"{start}: it fails at least one criterion{others}. Do not use it."
    one = len(failed) == 1
    verb = "is not equivalent to the model: it fails" if one else "are not equivalent to the model: they fail"
    start = f"{len(failed)} of {count} artifacts {verb} at least one criterion{others}."
    return f"{start} Do not use {'it' if one else 'them'}: {', '.join(failed)}."


def _passed(entries: list[Entry]) -> str:
    worst = max(entries, key=lambda e: e.item.robust_drop.ci95[1])
    allowed = worst.criteria.max_drop
    high = max(worst.item.robust_drop.ci95[1], 0.0)
    subject = "The artifact is" if len(entries) == 1 else f"All {len(entries)} artifacts are"
    return (
        f"{subject} as robust as the reference model: at most {points(high, allowed, 1)} of robust accuracy "
        f"was lost (95% confidence), {points(allowed, allowed)} is allowed."
    )


def _count(some: int, total: int) -> str:
    return "all" if some == total else f"{some}"


def search_sentence(worst: WorstCase) -> str:
    """Return what the worst-case search found, and what random inputs would have missed."""
    random = worst.random
    missed = []
    if worst.max_abs >= HUGE > random.max_abs:
        missed.append("that the difference is infinite")
    elif random.max_abs > 0 and worst.max_abs / random.max_abs >= 1.05:
        missed.append(f"a difference {number(worst.max_abs / random.max_abs)} times as large as theirs")
    elif random.max_abs == 0 < worst.max_abs:
        missed.append("the whole difference")
    if worst.flips > random.flips:
        missed.append(f"{worst.flips - random.flips:,} of {_flips(worst.flips)}")
    summary = f"Random inputs miss {' and '.join(missed)}." if missed else "Random inputs miss nothing."
    return (
        f"The search found a max abs difference of {number(worst.max_abs)} and {_flips(worst.flips)} in "
        f"{worst.evaluations:,} inputs; {random.evaluations:,} random inputs show {number(random.max_abs)} "
        f"and {_flips(random.flips)}. {summary}"
    )


def _flips(count: int) -> str:
    return f"{count:,} flip{'' if count == 1 else 's'}"
