"""Reports made without running anything: by default two artifacts that pass and an int8 one that fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.recipe.schema import Threat, Verify
from robust_export.verification.criteria import Criteria, criteria_table, decide, measure_drop
from robust_export.verification.results import (
    Accuracy,
    ArtifactReport,
    CurvePoint,
    Example,
    InputDifferences,
    LayerError,
    LogitDifferences,
    Parity,
    PlotData,
    ReferenceReport,
    Report,
    SanityCheck,
    WorstCase,
)
from robust_export.verification.statistics import wilson

N = 1000  # images
SCALE, MARGIN = 12.7, 4.1  # logit scale and median margin of the reference model
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SITES = [f"layer{i}.{j}.act{k}" for i in (1, 2, 3, 4) for j in (0, 1) for k in (1, 2)]
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # in units of the threat's eps
THREAT = Threat("Linf", 8 / 255)
DIGEST = "d837f819d8cdee74e62699cb28829f5906dde2b8136944a207279b2ec665dc05"


def accuracy(correct: int, n: int = N) -> Accuracy:
    return Accuracy(correct / n, wilson(correct, n))


def curve(robust: float, clean: float = 0.912) -> list[CurvePoint]:
    """Return a curve that falls from `clean` to `robust` at the threat's eps and on to 0."""
    shape = (1, 0.88, 0.74, 0.61, 0.5, 0.31, 0.17, 0.03, 0.0)
    at_eps = clean - robust
    return [
        CurvePoint(radius * THREAT.eps, max(0.0, clean - at_eps * (1 - part) / 0.5))
        for radius, part in zip(RADII, shape, strict=True)
    ]


def reference(**changes: Any) -> ReferenceReport:
    checks = [
        SanityCheck(
            "the black box is no better than the white box", "ok",
            "Square broke 0.0% of all images, which AutoAttack did not break",
        ),
        SanityCheck(
            "one step is no better than many", "ok",
            "accuracy 58.1% under one step of size eps, 51.0% under PGD",
        ),
        SanityCheck(
            "accuracy falls to zero as eps grows", "warn",
            "accuracy 1.3% under PGD in a ball that holds every image",
        ),
        SanityCheck("AutoAttack warns of nothing", "ok", "no flag was raised"),
    ]  # fmt: skip
    made = ReferenceReport(
        clean=accuracy(912), robust=accuracy(487),
        attacks={"apgd-ce": 0.503, "apgd-t": 0.487, "fab-t": 0.487, "square": 0.487},
        budgets={
            "attacks": ["apgd-ce", "apgd-t", "fab-t", "square"], "iterations": 100, "targets": 9,
            "queries": 5000, "batch_size": 256, "seed": 0, "ascent": 50,
        },
        flags=[], logit_scale=SCALE, median_margin=MARGIN, checks=checks, curve=curve(0.487),
    )  # fmt: skip
    return replace(made, **changes)


def artifact(
    *, file: str = "model.onnx", precision: str = "fp32", fused: int = 0, max_abs: float = 7e-6,
    flips: int = 0, flip_margin: float = 0.0, lost: int = 0, checks: list[SanityCheck] | None = None,
    **changes: Any,
) -> ArtifactReport:  # fmt: skip
    """Return an artifact with the verdict that the criteria give.

    Args:
        max_abs: largest logit difference.
        lost: images that are robust for the reference model and not for the artifact.
        checks: added to four that pass.
    """
    reference_robust, reference_clean = np.arange(N) < 487, np.arange(N) < 912
    robust, clean = np.arange(N) < 487 - lost, np.arange(N) < 912 - lost // 5
    random = LogitDifferences(max_abs * 0.7, 0, 0.0, 128_000)
    worst = WorstCase(max_abs, flips, flip_margin, 128_000, random, 0.001)
    agreement = 1 - lost / N
    parity = {
        kind: Parity(
            max_abs * part, max_abs * part / 8, 1 - max_abs * 1e-6, 1.0 if kind == "clean" else agreement, 0
        )
        for kind, part in (("clean", 0.5), ("adversarial", 0.6), ("noise", 0.7))
    }
    criteria = Criteria.for_precision(Verify(), precision, SCALE, MARGIN)
    clean_drop = measure_drop(reference_clean, clean, criteria.max_clean_drop)
    robust_drop = measure_drop(reference_robust, robust, criteria.max_drop)
    all_checks = [
        SanityCheck("logits are finite", "ok", "0 of 1,310,000 logits are NaN or infinite"),
        SanityCheck(
            "the same input twice", "ok", "logits differ by up to 0, 0 of 256 predictions change"
        ),
        SanityCheck(
            "batches of 1 and of 256", "ok",
            f"logits differ by up to {max_abs / 3:.2g}, 0 of 16 predictions change",
        ),
        SanityCheck(
            "labels in order", "ok", "predictions agree on 100.0%; no other order explains the rest"
        ),
        *(checks or []),
    ]  # fmt: skip
    failed = [f"{check.name}: {check.evidence}" for check in all_checks if check.outcome == "fail"]
    verdict = decide(parity, worst, clean_drop, robust_drop, N, criteria, failed)
    made = ArtifactReport(
        file=file, sha256=DIGEST, bytes=44_731_220 if precision == "fp32" else 11_402_118,
        runtime="onnxruntime", precision=precision, sparta_nodes=17, fused_nodes=fused,
        parity=parity, worst_case=worst, clean=accuracy(int(clean.sum())),
        robust=accuracy(int(robust.sum())),
        attacks={"transfer": 0.487, "bpda": 0.487 - lost / N / 2, "square": 0.487 - lost / N},
        budgets={"iterations": 100, "queries": 5000, "ascent": 50},
        clean_drop=clean_drop, robust_drop=robust_drop, checks=all_checks, curve=curve(0.487 - lost / N),
        layer_errors=[
            LayerError(site, 0.0 if i == 0 else max_abs * 0.02 * (1 + i)) for i, site in enumerate(SITES)
        ],
        latency={"1": 0.00231 if fused else 0.00274, "64": 0.0871 if fused else 0.1042},
        verdict=verdict.outcome, reasons=verdict.reasons,
    )  # fmt: skip
    return replace(made, **changes)


def three_artifacts() -> list[ArtifactReport]:
    """Return an artifact on stock ONNX Runtime, the same fused, and an int8 one that fails."""
    warning = SanityCheck(
        "position in the batch", "warn", "logits differ by up to 0.11, 2 of 256 predictions change"
    )
    return [
        artifact(), artifact(fused=17, max_abs=8.6e-6),
        artifact(
            file="model.int8.onnx", precision="int8", max_abs=3.41, flips=2310, flip_margin=2.9, lost=71,
            checks=[warning],
        ),
    ]  # fmt: skip


def plot_data(artifacts: list[ArtifactReport], labels: list[str], examples: int = 5) -> PlotData:
    random = np.random.default_rng(0)
    return PlotData(
        [_example(random, i, artifacts, len(labels)) for i in range(examples)],
        {item.title: _search(random, item) for item in artifacts},
        {item.title: _max_abs(random, item) for item in artifacts},
    )


def report(artifacts: list[ArtifactReport] | None = None, **changes: Any) -> Report:
    """Return a report of some artifacts, by default of `three_artifacts`, with plot data."""
    artifacts = three_artifacts() if artifacts is None else artifacts
    labels = changes.pop("labels", LABELS)
    data = changes.pop("plot_data", None) or plot_data(artifacts, labels)
    made = Report(
        model="r18_sparta", threat=THREAT, samples=N, criteria=criteria_table(Verify()), labels=labels,
        reference=reference(), artifacts=artifacts,
        provenance={
            "created": "2026-02-03T04:05:06+00:00",
            "versions": {"robust-export": "0.1.0", "torch": "2.9.1", "onnxruntime": "1.23.0"},
            "data": {"name": "cifar10", "split": "test", "sha256": DIGEST}, "weights_sha256": DIGEST[::-1],
            "machine": {"system": "Linux", "cpu": "AMD EPYC 9254 24-Core Processor", "cpus": 2, "gpu": None},
        },
        command="robust-export verify --model r18_sparta --samples 1000",
        seconds={"attack the reference model": 1834.2, "attack model.onnx": 412.9, "compare": 65.0},
        plot_data=data,
    )  # fmt: skip
    return replace(made, **changes)


def _example(random: np.random.Generator, i: int, artifacts: list[ArtifactReport], classes: int) -> Example:
    coarse = random.random((3, 5, 5))
    clean = np.kron(coarse, np.ones((1, 6, 6))).astype(np.float32)
    change = THREAT.eps * random.choice([-1, 1], clean.shape)
    label, other = i % classes, (i + 3) % classes
    predictions = {"reference": (label, label if i == 3 else other)}
    for item in artifacts:
        predictions[item.title] = (label, other) if item.verdict == "fail" else predictions["reference"]
    adversarial = np.clip(clean + change, 0, 1).astype(np.float32)
    return Example(label, clean, adversarial, ("apgd-ce", "square")[i % 2], predictions)


def _search(random: np.random.Generator, item: ArtifactReport, count: int = 1500) -> InputDifferences:
    worst = item.worst_case
    margin = np.exp(random.normal(-1, 3, count))
    max_abs = np.minimum(worst.max_abs * np.exp(random.normal(-1.5, 0.6, count)), worst.max_abs)
    flipped = (margin < 2 * max_abs) & (margin <= worst.flip_margin) & (random.random(count) < 0.5)
    max_abs[:20], margin[20:30] = 0, 0
    return InputDifferences(margin, max_abs, flipped & (max_abs > 0))


def _max_abs(random: np.random.Generator, item: ArtifactReport) -> dict[str, npt.NDArray[np.float64]]:
    result = {}
    for kind, p in item.parity.items():
        max_abs = np.minimum(p.max_abs * np.exp(random.normal(-1.2, 0.5, N)), p.max_abs)
        max_abs[:20] = 0  # exact agreement, which has no logarithm
        result[kind] = max_abs
    return result
