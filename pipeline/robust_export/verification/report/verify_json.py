"""verify.json: the report as JSON. Its keys are a public format and differ from some field names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from robust_export.verification.results import (
    Accuracy,
    ArtifactReport,
    CurvePoint,
    ReferenceReport,
    Report,
    SanityCheck,
)

SCHEMA = 1
STAGES = {"attack the reference model": "attack the source"}  # keys of "seconds" that differ from the stage


def to_dict(report: Report) -> dict[str, Any]:
    """Return the content of verify.json."""
    return {
        "schema": SCHEMA, "model": report.model, "threat": asdict(report.threat),
        "samples": report.samples, "verdict": report.verdict, "gates": report.criteria,
        "source": _reference(report.reference),
        "artifacts": [_artifact(artifact) for artifact in report.artifacts],
        "not_run": report.not_run, "elsewhere": report.elsewhere,
        "seconds": {STAGES.get(stage, stage): seconds for stage, seconds in report.seconds.items()},
        "command": report.command, "provenance": report.provenance,
    }  # fmt: skip


def _reference(item: ReferenceReport) -> dict[str, Any]:
    return {
        **_accuracies(item.clean, item.robust), "attacks": item.attacks, "budgets": item.budgets,
        "flags": item.flags, "logit_scale": item.logit_scale, "median_margin": item.median_margin,
        "guards": _list(item.checks), "curve": _list(item.curve),
    }  # fmt: skip


def _artifact(item: ArtifactReport) -> dict[str, Any]:
    robust = item.robust_drop
    return {
        "file": item.file, "sha256": item.sha256, "bytes": item.bytes, "runtime": item.runtime,
        "precision": item.precision, "fused_nodes": item.fused_nodes, "sparta_nodes": item.sparta_nodes,
        "parity": {
            **{name: asdict(parity) for name, parity in item.parity.items()},
            "worst_case": asdict(item.worst_case),
        },
        **_accuracies(item.clean, item.robust), "attacks": item.attacks, "budgets": item.budgets,
        "drop": robust.drop, "drop_ci95": list(robust.ci95),
        "clean_drop": item.clean_drop.drop, "clean_drop_ci95": list(item.clean_drop.ci95),
        "verdict": item.verdict, "samples_needed": robust.samples_needed, "reasons": item.reasons,
        "notes": item.notes, "guards": _list(item.checks), "curve": _list(item.curve),
        "drift": [{"site": layer.site, "drift": layer.error} for layer in item.layer_errors],
        "latency": item.latency,
    }  # fmt: skip


def _list(items: Sequence[SanityCheck | CurvePoint]) -> list[dict[str, Any]]:
    return [asdict(item) for item in items]


def _accuracies(clean: Accuracy, robust: Accuracy) -> dict[str, Any]:
    return {
        "clean_accuracy": clean.value, "clean_accuracy_ci95": list(clean.ci95),
        "robust_accuracy": robust.value, "robust_accuracy_ci95": list(robust.ci95),
    }  # fmt: skip
