"""What the terminal shows of a report."""

from __future__ import annotations

from rich.table import Table

from robust_export.verification.results import Accuracy, Report


def tables(report: Report) -> list[Table]:
    """Return the accuracies, the parity, and the checks that did not hold."""
    shown = [_accuracies(report), _parity(report)]
    guards = _guards(report)
    return [*shown, guards] if guards.row_count else shown


def _accuracies(report: Report) -> Table:
    threat = f"{report.threat.norm} eps {report.threat.eps:.4g}"
    title = f"{report.model}: {report.samples} test images, {threat}"
    table = Table(title=title, title_justify="left")
    table.add_column("runs on", overflow="fold")
    for name in ("clean accuracy", "robust accuracy", "robust drop", "verdict"):
        table.add_column(name, justify="right")
    table.add_row("PyTorch (source)", _show(report.source.clean), _show(report.source.robust), "", "")
    for item in report.artifacts:
        low, high = item.robust_drop.ci95
        drop = f"{item.robust_drop.drop:.2%} [{low:.2%}, {high:.2%}]"
        table.add_row(item.where, _show(item.clean), _show(item.robust), drop, item.verdict.upper())
    for name, why in report.not_run.items():
        table.add_row(name, "not run", why, "", "")
    for name, why in report.elsewhere.items():
        table.add_row(name, "not judged", why, "", "")
    return table


def _parity(report: Report) -> Table:
    scale = f"logit scale {report.source.logit_scale:.3g}, median margin {report.source.median_margin:.3g}"
    table = Table(title=f"parity with the source, {scale}", title_justify="left")
    table.add_column("runs on")
    table.add_column("inputs")
    for name in ("max gap", "mean gap", "agreement", "flips", "flip margin"):
        table.add_column(name, justify="right")
    for item in report.artifacts:
        for name, p in item.parity.items():
            agree = f"{p.top1_agreement:.2%}"
            table.add_row(item.where, name, f"{p.max_abs:.2e}", f"{p.mean_abs:.2e}", agree, "", "")
        worst = item.worst_case
        for name, found in ((f"{worst.random.evaluations:,} random", worst.random), ("worst case", worst)):
            table.add_row(
                item.where, name, f"{found.max_abs:.2e}", "", "", str(found.flips), f"{found.flip_margin:.2e}"
            )
    return table


def _guards(report: Report) -> Table:
    table = Table(title="checks that did not hold", title_justify="left")
    for name in ("of", "check", "", "evidence"):
        table.add_column(name, overflow="fold")
    for of, guards in (("source", report.source.guards), *((a.where, a.guards) for a in report.artifacts)):
        for guard in guards:
            if guard.outcome != "ok":
                table.add_row(of, guard.name, guard.outcome.upper(), guard.evidence)
    return table


def _show(accuracy: Accuracy) -> str:
    low, high = accuracy.ci95
    return f"{accuracy.value:.1%} [{low:.1%}, {high:.1%}]"
