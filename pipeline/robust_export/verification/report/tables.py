"""Tables of a report on the terminal."""

from __future__ import annotations

from rich.table import Table

from robust_export.verification.results import Accuracy, Report


def tables(report: Report) -> list[Table]:
    """Return the tables of accuracy, of parity, and of failed checks if there are any."""
    checks = _failed_checks(report)
    return [_accuracy(report), _parity(report), *([checks] if checks.row_count else [])]


def _accuracy(report: Report) -> Table:
    threat = f"{report.threat.norm} eps {report.threat.eps:.4g}"
    title = f"{report.model}: {report.samples} test images, {threat}"
    table = Table(title=title, title_justify="left")
    table.add_column("runtime", overflow="fold")
    for name in ("clean accuracy", "robust accuracy", "robust drop", "verdict"):
        table.add_column(name, justify="right")
    reference = report.reference
    table.add_row("PyTorch (reference)", _format(reference.clean), _format(reference.robust), "", "")
    for item in report.artifacts:
        low, high = item.robust_drop.ci95
        drop = f"{item.robust_drop.drop:.2%} [{low:.2%}, {high:.2%}]"
        table.add_row(item.where, _format(item.clean), _format(item.robust), drop, item.verdict.upper())
    for name, why in report.not_run.items():
        table.add_row(name, "not run", why, "", "")
    for name, why in report.elsewhere.items():
        table.add_row(name, "not verified", why, "", "")
    return table


def _parity(report: Report) -> Table:
    reference = report.reference
    units = f"logit scale {reference.logit_scale:.3g}, median margin {reference.median_margin:.3g}"
    table = Table(title=f"logit differences from the reference model, {units}", title_justify="left")
    table.add_column("runtime")
    table.add_column("inputs")
    for name in ("max abs", "mean abs", "agreement", "flips", "flip margin"):
        table.add_column(name, justify="right")
    for item in report.artifacts:
        for kind, p in item.parity.items():
            agreement = f"{p.top1_agreement:.2%}"
            table.add_row(item.where, kind, f"{p.max_abs:.2e}", f"{p.mean_abs:.2e}", agreement, "", "")
        worst = item.worst_case
        for kind, d in ((f"{worst.random.evaluations:,} random", worst.random), ("worst case", worst)):
            table.add_row(item.where, kind, f"{d.max_abs:.2e}", "", "", str(d.flips), f"{d.flip_margin:.2e}")
    return table


def _failed_checks(report: Report) -> Table:
    table = Table(title="failed checks and warnings", title_justify="left")
    for name in ("runtime", "check", "", "evidence"):
        table.add_column(name, overflow="fold")
    checked = [("PyTorch (reference)", report.reference.checks)]
    checked += [(item.where, item.checks) for item in report.artifacts]
    for where, checks in checked:
        for check in checks:
            if check.outcome != "ok":
                table.add_row(where, check.name, check.outcome.upper(), check.evidence)
    return table


def _format(accuracy: Accuracy) -> str:
    low, high = accuracy.ci95
    return f"{accuracy.value:.1%} [{low:.1%}, {high:.1%}]"
