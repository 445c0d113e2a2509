"""A verification's report as it might be: three artifacts, two faithful and an int8 one that is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.recipe.schema import Threat, Verify
from robust_export.verification.criteria import Criteria, judge, measure_drop, stated
from robust_export.verification.parity import Parity
from robust_export.verification.results import (
    Accuracy,
    ArtifactReport,
    CurvePoint,
    Example,
    LayerError,
    Pictures,
    Points,
    ReferenceReport,
    Report,
    SanityCheck,
    Searched,
    WorstCase,
    title,
)
from robust_export.verification.statistics import wilson

N = 1000  # images
SCALE, MARGIN = 12.7, 4.1  # the source's logit scale and its median margin
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SITES = [f"layer{i}.{j}.act{k}" for i in (1, 2, 3, 4) for j in (0, 1) for k in (1, 2)]
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # of the threat's eps
THREAT = Threat("Linf", 8 / 255)
DIGEST = "d837f819d8cdee74e62699cb28829f5906dde2b8136944a207279b2ec665dc05"


def accuracy(right: int, n: int = N) -> Accuracy:
    return Accuracy(right / n, wilson(right, n))


def curve(robust: float, clean: float = 0.912) -> list[CurvePoint]:
    """Return a curve from `clean` through `robust` at the threat's eps to nothing."""
    shape = (1, 0.88, 0.74, 0.61, 0.5, 0.31, 0.17, 0.03, 0.0)
    at_eps = clean - robust
    return [
        CurvePoint(radius * THREAT.eps, max(0.0, clean - at_eps * (1 - part) / 0.5))
        for radius, part in zip(RADII, shape, strict=True)
    ]


def source(**changes: Any) -> ReferenceReport:
    told = {
        "the black box is no better than the white box": "Square broke 0.0% more than AutoAttack",
        "one step is no better than many": "accuracy 58.1% under one step of size eps, 51.0% under PGD",
        "accuracy falls to zero as eps grows": "accuracy 1.3% under PGD where the ball holds every image",
        "AutoAttack warns of nothing": "no flag was raised",
    }
    guards = [
        SanityCheck(name, "warn" if "1.3%" in evidence else "ok", evidence) for name, evidence in told.items()
    ]
    made = ReferenceReport(
        clean=accuracy(912), robust=accuracy(487),
        attacks={"apgd-ce": 0.503, "apgd-t": 0.487, "fab-t": 0.487, "square": 0.487},
        budgets={
            "attacks": ["apgd-ce", "apgd-t", "fab-t", "square"], "iterations": 100, "targets": 9,
            "queries": 5000, "batch_size": 256, "seed": 0, "ascent": 50,
        },
        flags=[], logit_scale=SCALE, median_margin=MARGIN, guards=guards, curve=curve(0.487),
    )  # fmt: skip
    return replace(made, **changes)


def artifact(
    *, file: str = "model.onnx", precision: str = "fp32", fused: int = 0, gap: float = 7e-6, flips: int = 0,
    flip_margin: float = 0.0, lost: int = 0, guards: list[SanityCheck] | None = None, **changes: Any,
) -> ArtifactReport:  # fmt: skip
    """Return an artifact and its verdict, as the gates make it.

    Args:
        gap: largest, in logits.
        lost: images that are robust for the source and not for it.
    """
    ours, clean = np.arange(N) < 487, np.arange(N) < 912
    theirs, read = np.arange(N) < 487 - lost, np.arange(N) < 912 - lost // 5
    worst = WorstCase(gap, flips, flip_margin, 128_000, Searched(gap * 0.7, 0, 0.0, 128_000), 0.001)
    agreement = 1 - lost / N
    parity = {
        kind: Parity(gap * part, gap * part / 8, 1 - gap * 1e-6, 1.0 if kind == "clean" else agreement, 0)
        for kind, part in (("clean", 0.5), ("adversarial", 0.6), ("noise", 0.7))
    }
    settings = Verify()
    gates = Criteria.of(settings, precision, SCALE, MARGIN)
    clean_drop = measure_drop(clean, read, gates.max_clean_drop)
    robust_drop = measure_drop(ours, theirs, gates.max_drop)
    every = [
        SanityCheck("logits are finite", "ok", "0 of 1,310,000 logits are NaN or infinite"),
        SanityCheck("the same input twice", "ok", "logits differ by up to 0, 0 of 256 decisions change"),
        SanityCheck(
            "batches of 1 and of 256", "ok", f"logits differ by up to {gap / 3:.2g}, 0 of 16 decisions change"
        ),
        SanityCheck("labels in order", "ok", "decisions agree on 100.0%; no other order does better"),
        *(guards or []),
    ]
    broken = [f"{g.name}: {g.evidence}" for g in every if g.outcome == "fail"]
    verdict = judge(parity, worst, clean_drop, robust_drop, N, gates, broken)
    made = ArtifactReport(
        file=file, sha256=DIGEST, bytes=44_731_220 if precision == "fp32" else 11_402_118,
        runtime="onnxruntime", precision=precision, sparta_nodes=17, fused_nodes=fused,
        parity=parity, worst_case=worst, clean=accuracy(int(read.sum())), robust=accuracy(int(theirs.sum())),
        attacks={"transfer": 0.487, "bpda": 0.487 - lost / N / 2, "square": 0.487 - lost / N},
        budgets={"iterations": 100, "queries": 5000, "ascent": 50},
        clean_drop=clean_drop, robust_drop=robust_drop, guards=every, curve=curve(0.487 - lost / N),
        drift=[LayerError(site, 0.0 if i == 0 else gap * 0.02 * (1 + i)) for i, site in enumerate(SITES)],
        latency={"1": 0.00231 if fused else 0.00274, "64": 0.0871 if fused else 0.1042},
        verdict=verdict.verdict, reasons=verdict.reasons,
    )  # fmt: skip
    return replace(made, **changes)


def three() -> list[ArtifactReport]:
    """Return an artifact as a stock runtime runs it, the same fused, and an int8 one that fails."""
    late = SanityCheck(
        "position in the batch", "warn", "logits differ by up to 0.11, 2 of 256 decisions change"
    )
    return [
        artifact(), artifact(fused=17, gap=8.6e-6),
        artifact(
            file="model.int8.onnx", precision="int8", gap=3.41, flips=2310, flip_margin=2.9, lost=71,
            guards=[late],
        ),
    ]  # fmt: skip


def pictures(artifacts: list[ArtifactReport], labels: list[str], examples: int = 5) -> Pictures:
    random = np.random.default_rng(0)
    return Pictures(
        [_example(random, i, artifacts, len(labels)) for i in range(examples)],
        {title(item): _points(random, item) for item in artifacts},
        {title(item): _gaps(random, item) for item in artifacts},
    )


def report(artifacts: list[ArtifactReport] | None = None, **changes: Any) -> Report:
    """Return a report of some artifacts, by default of `three`, with their pictures."""
    artifacts = three() if artifacts is None else artifacts
    labels = changes.pop("labels", LABELS)
    drawn = changes.pop("pictures", None) or pictures(artifacts, labels)
    made = Report(
        model="r18_sparta", threat=THREAT, samples=N, gates=stated(Verify()), labels=labels, source=source(),
        artifacts=artifacts,
        provenance={
            "created": "2026-02-03T04:05:06+00:00",
            "versions": {"robust-export": "0.1.0", "torch": "2.9.1", "onnxruntime": "1.23.0"},
            "data": {"name": "cifar10", "split": "test", "sha256": DIGEST}, "weights_sha256": DIGEST[::-1],
            "machine": {"system": "Linux", "cpu": "AMD EPYC 9254 24-Core Processor", "cpus": 2, "gpu": None},
        },
        command="robust-export verify --model r18_sparta --samples 1000",
        seconds={"attack": 1834.2, "artifact attacks": 412.9, "worst case": 65.0, "latency": 3.2},
        pictures=drawn,
    )  # fmt: skip
    return replace(made, **changes)


def _example(random: np.random.Generator, i: int, artifacts: list[ArtifactReport], classes: int) -> Example:
    coarse = random.random((3, 5, 5))
    clean = np.kron(coarse, np.ones((1, 6, 6))).astype(np.float32)
    change = THREAT.eps * random.choice([-1, 1], clean.shape)
    label, other = i % classes, (i + 3) % classes
    decisions = {"source": (label, label if i == 3 else other)}
    for item in artifacts:
        decisions[title(item)] = (label, other) if item.verdict == "fail" else decisions["source"]
    adversarial = np.clip(clean + change, 0, 1).astype(np.float32)
    return Example(label, clean, adversarial, ("apgd-ce", "square")[i % 2], decisions)


def _points(random: np.random.Generator, item: ArtifactReport, count: int = 1500) -> Points:
    worst = item.worst_case
    margin = np.exp(random.normal(-1, 3, count))
    gap = np.minimum(worst.max_abs * np.exp(random.normal(-1.5, 0.6, count)), worst.max_abs)
    flipped = (margin < 2 * gap) & (margin <= worst.flip_margin) & (random.random(count) < 0.5)
    gap[:20], margin[20:30] = 0, 0
    return Points(margin, gap, flipped & (gap > 0))


def _gaps(random: np.random.Generator, item: ArtifactReport) -> dict[str, npt.NDArray[np.float64]]:
    found = {}
    for kind, p in item.parity.items():
        gap = np.minimum(p.max_abs * np.exp(random.normal(-1.2, 0.5, N)), p.max_abs)
        gap[:20] = 0  # exact agreement, which a logarithm cannot show
        found[kind] = gap
    return found
