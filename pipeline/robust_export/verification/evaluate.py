"""Comparison of artifacts and reference model: accuracy, parity, checks, latency, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from robust_export.errors import InvalidValue
from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Pixels
from robust_export.utils.timing import measure
from robust_export.verification import gradient_masking, sanity
from robust_export.verification.artifact_runs import ArtifactRun
from robust_export.verification.attack_artifact import ArtifactAttacks
from robust_export.verification.attack_reference import ReferenceAttacks, curve_radii
from robust_export.verification.criteria import NAMES, Criteria, decide, measure_drop
from robust_export.verification.examples import Evaluation
from robust_export.verification.parity import logit_scale, margins, parity
from robust_export.verification.per_layer import per_layer_errors
from robust_export.verification.results import Accuracy, ArtifactReport, Bools, CurvePoint, ReferenceReport
from robust_export.verification.setup import Setup
from robust_export.verification.statistics import wilson
from robust_export.verification.worst_case import worst_case

LATENCY_BATCHES = (1, 32)
SAMPLE = 32  # images of the sanity checks and of the per-layer error


def reference_report(setup: Setup, evaluation: Evaluation, attacks: ReferenceAttacks) -> ReferenceReport:
    """Report on the reference model.

    Args:
        evaluation: of the reference model on all examples.
    """
    result = attacks.autoattack
    scale, margin = _logit_units(evaluation)
    budgets = {k: v for k, v in asdict(setup.settings).items() if k not in (*NAMES, "samples")}
    return ReferenceReport(
        clean=_accuracy(evaluation.clean), robust=_accuracy(evaluation.robust), attacks=result.accuracy,
        budgets=budgets, flags=result.flags, logit_scale=scale, median_margin=margin,
        checks=gradient_masking.check_reference(
            result.accuracy, attacks.one_step, attacks.many_steps, attacks.unbounded, result.flags
        ),
        curve=_curve(evaluation, setup.threat),
    )  # fmt: skip


def compare_artifacts(
    setup: Setup, reference: Evaluation, attacks: Sequence[ArtifactAttacks], labels: Sequence[str]
) -> list[ArtifactReport]:
    """Compare each artifact with the reference model and decide its verdict.

    Args:
        reference: evaluation of the reference model on all examples.
        labels: names of the classes.
    """
    latency = measure_latency([item.run for item in attacks], reference.examples.clean)
    return [_compare(setup, reference, item, labels, latency[item.run.title]) for item in attacks]


def _compare(
    setup: Setup, reference: Evaluation, attacks: ArtifactAttacks, labels: Sequence[str],
    latency: dict[str, float],
) -> ArtifactReport:  # fmt: skip
    run, evaluation, classifier = attacks.run, attacks.evaluation.update(), attacks.run.classifier
    criteria = Criteria.for_precision(setup.settings, classifier.precision, *_logit_units(reference))
    expected = reference.parity_logits()
    parities = {kind: parity(expected[kind], actual) for kind, actual in evaluation.parity_logits().items()}
    worst = worst_case(attacks.searched, attacks.random, reference.logits["clean"])
    clean_drop = measure_drop(reference.clean, evaluation.clean, criteria.max_clean_drop)
    robust_drop = measure_drop(reference.robust, evaluation.robust, criteria.max_drop)
    sample = reference.examples.clean[:SAMPLE]
    checks = [
        sanity.check_finite(list(evaluation.logits.values())),
        *sanity.check_repeatable(classifier, sample, criteria),
        sanity.check_extreme_pixels(setup.reference, classifier, sample, criteria),
        sanity.check_label_order(reference.logits["clean"], evaluation.logits["clean"], labels),
        sanity.check_preprocessing(
            setup.reference, classifier, sample, criteria, setup.reference.normalisation
        ),
        gradient_masking.check_artifact(attacks.accuracy),
    ]
    failed_checks = [f"{check.name}: {check.evidence}" for check in checks if check.outcome == "fail"]
    samples = len(reference.examples.labels)
    verdict = decide(parities, worst, clean_drop, robust_drop, samples, criteria, failed_checks)
    return ArtifactReport(
        file=run.name, sha256=run.sha256, bytes=run.size, runtime=classifier.runtime,
        precision=classifier.precision, sparta_nodes=classifier.sparta_nodes,
        fused_nodes=classifier.fused_nodes(), parity=parities, worst_case=worst,
        clean=_accuracy(evaluation.clean), robust=_accuracy(evaluation.robust), attacks=attacks.accuracy,
        budgets={name: getattr(run.settings, name) for name in ("iterations", "queries", "ascent", "seed")},
        clean_drop=clean_drop, robust_drop=robust_drop, checks=checks,
        curve=_curve(evaluation, setup.threat),
        layer_errors=per_layer_errors(setup.reference, classifier, sample), latency=latency,
        verdict=verdict.outcome, reasons=verdict.reasons, notes=[*run.notes, *attacks.notes],
    )  # fmt: skip


def measure_latency(runs: Sequence[ArtifactRun], images: Pixels) -> dict[str, dict[str, float]]:
    """Return the median seconds of a call by artifact and batch size; all artifacts are measured in turns."""
    latency: dict[str, dict[str, float]] = {run.title: {} for run in runs}
    for size in LATENCY_BATCHES if runs else ():
        batch = np.ascontiguousarray(images[:size])
        calls = {run.title: lambda run=run, batch=batch: run.classifier(batch) for run in runs}
        for title, timing in measure(calls, rounds=3).items():
            latency[title][str(len(batch))] = timing.median
    return latency


def _logit_units(reference: Evaluation) -> tuple[float, float]:
    """Return logit scale and median margin of the reference model on the clean images."""
    clean = reference.logits["clean"]
    return logit_scale(clean), float(np.median(margins(clean)))


def _curve(evaluation: Evaluation, threat: Threat) -> list[CurvePoint]:
    return [CurvePoint(eps, float(evaluation.robust_at(eps).mean())) for eps in curve_radii(threat)]


def _accuracy(correct: Bools) -> Accuracy:
    count, n = int(correct.sum()), len(correct)
    if n == 0:
        raise InvalidValue("there are no test images to verify on; raise --samples")
    return Accuracy(count / n, wilson(count, n))
