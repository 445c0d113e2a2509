"""What verification found: verify.json, and a table for the terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from robust_export.config import Threat
from robust_export.verification.gates import Drop, Outcome
from robust_export.verification.parity import Parity
from robust_export.verification.statistics import Interval

SCHEMA = 1


@dataclass(frozen=True)
class Accuracy:
    """A share of images that are classified right, with its Wilson interval."""

    value: float
    ci95: Interval


@dataclass(frozen=True)
class SourceReport:
    """The PyTorch network's own accuracy, clean and under attack."""

    clean: Accuracy
    robust: Accuracy
    attacks: dict[str, float]  # robust accuracy after each attack, cumulative
    budgets: dict[str, Any]
    flags: list[str]  # AutoAttack's own warnings
    logit_scale: float


@dataclass(frozen=True)
class ArtifactReport:
    """An artifact, compared with the source on the same images."""

    file: str
    sha256: str
    runtime: str
    precision: str
    sparta_nodes: int
    fused_nodes: int
    parity: dict[str, Parity]
    clean: Accuracy
    robust: Accuracy
    attacks: dict[str, float]
    clean_drop: Drop
    robust_drop: Drop
    verdict: Outcome
    reasons: list[str]

    @property
    def where(self) -> str:
        """What ran it, in a few words."""
        some = f"{self.fused_nodes} of {self.sparta_nodes} " if self.fused_nodes < self.sparta_nodes else ""
        fused = f" ({some}fused)" if self.fused_nodes else ""
        return f"{self.runtime} {self.precision}{fused}"


@dataclass(frozen=True)
class Report:
    """The whole verification of a model."""

    model: str
    threat: Threat
    samples: int
    gates: dict[str, float]
    source: SourceReport
    artifacts: list[ArtifactReport]
    provenance: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> Outcome:
        """Return the worst verdict of all artifacts."""
        verdicts = {artifact.verdict for artifact in self.artifacts}
        return "fail" if "fail" in verdicts else "undecided" if "undecided" in verdicts else "pass"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as verify.json holds it."""
        source = self.source
        return {
            "schema": SCHEMA, "model": self.model, "threat": asdict(self.threat),
            "samples": self.samples, "verdict": self.verdict, "gates": self.gates,
            "source": {
                **_accuracies(source.clean, source.robust), "attacks": source.attacks,
                "budgets": source.budgets, "flags": source.flags,
                "logit_scale": source.logit_scale,
            },
            "artifacts": [_artifact(artifact) for artifact in self.artifacts],
            "seconds": self.seconds, "provenance": self.provenance,
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """Return what the terminal shows."""
        return [self._accuracy_table(), self._parity_table()]

    def _accuracy_table(self) -> Table:
        threat = f"{self.threat.norm} eps {self.threat.eps:.4g}"
        table = Table(title=f"{self.model}: {self.samples} test images, {threat}", title_justify="left")
        table.add_column("runs on", overflow="fold")
        for name in ("clean accuracy", "robust accuracy", "robust drop", "verdict"):
            table.add_column(name, justify="right")
        table.add_row("PyTorch (source)", _show(self.source.clean), _show(self.source.robust), "", "")
        for item in self.artifacts:
            low, high = item.robust_drop.ci95
            drop = f"{item.robust_drop.drop:.2%} [{low:.2%}, {high:.2%}]"
            table.add_row(
                item.where, _show(item.clean), _show(item.robust), drop,
                item.verdict.upper(),
            )  # fmt: skip
        return table

    def _parity_table(self) -> Table:
        scale = f"logit scale {self.source.logit_scale:.3g}"
        table = Table(title=f"parity with the source, {scale}", title_justify="left")
        table.add_column("runs on")
        table.add_column("inputs")
        for name in ("max gap", "mean gap", "cosine", "top-1 agreement"):
            table.add_column(name, justify="right")
        for item in self.artifacts:
            for name, p in item.parity.items():
                table.add_row(
                    item.where, name, f"{p.max_abs:.2e}", f"{p.mean_abs:.2e}", f"{p.cosine:.8f}",
                    f"{p.top1_agreement:.2%}",
                )  # fmt: skip
        return table


def _artifact(item: ArtifactReport) -> dict[str, Any]:
    robust = item.robust_drop
    return {
        "file": item.file, "sha256": item.sha256, "runtime": item.runtime,
        "precision": item.precision, "fused_nodes": item.fused_nodes,
        "sparta_nodes": item.sparta_nodes,
        "parity": {name: asdict(p) for name, p in item.parity.items()},
        **_accuracies(item.clean, item.robust), "attacks": item.attacks,
        "drop": robust.drop, "drop_ci95": list(robust.ci95),
        "clean_drop": item.clean_drop.drop, "clean_drop_ci95": list(item.clean_drop.ci95),
        "verdict": item.verdict, "samples_needed": robust.samples_needed, "reasons": item.reasons,
    }  # fmt: skip


def _accuracies(clean: Accuracy, robust: Accuracy) -> dict[str, Any]:
    return {
        "clean_accuracy": clean.value, "clean_accuracy_ci95": list(clean.ci95),
        "robust_accuracy": robust.value, "robust_accuracy_ci95": list(robust.ci95),
    }  # fmt: skip


def _show(accuracy: Accuracy) -> str:
    low, high = accuracy.ci95
    return f"{accuracy.value:.1%} [{low:.1%}, {high:.1%}]"
