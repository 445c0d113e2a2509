"""Verification from end to end: attack the source and its artifacts, compare them, judge, and report."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from robust_export.bundle import Bundle
from robust_export.data.datasets import Images, load_dataset
from robust_export.errors import InvalidValue
from robust_export.kernels.libraries import ort_library, why_no_library
from robust_export.nn.models import load
from robust_export.nn.sparta import sparta_modules
from robust_export.recipe.schema import Threat, Verify
from robust_export.runtimes.classifier import Pixels
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.utils.device import find_device
from robust_export.utils.files import to_json
from robust_export.utils.provenance import machine, now, versions
from robust_export.utils.timing import measure
from robust_export.utils.work_items import WorkItems
from robust_export.verification import sanity as guards
from robust_export.verification.artifacts import Subject, subjects
from robust_export.verification.attack import (
    ArtifactEvidence,
    ReferenceEvidence,
    Trial,
    attack_artifact,
    attack_source,
    radii,
)
from robust_export.verification.criteria import NAMES, Correct, Criteria, judge, measure_drop, stated
from robust_export.verification.examples import Examples, Score
from robust_export.verification.parity import logit_scale, margins, parity
from robust_export.verification.per_layer import drift
from robust_export.verification.report.figures import pictures
from robust_export.verification.report.html import render
from robust_export.verification.results import Accuracy, ArtifactReport, CurvePoint, ReferenceReport, Report
from robust_export.verification.selection import AUTO, listed
from robust_export.verification.statistics import wilson
from robust_export.verification.worst_case import worst_case

REPORT, PAGE = "verify.json", "report.html"
BATCHES = (1, 32)  # of which the latency is measured
CHECKED = 32  # images of the checks that repeat an artifact's work, and of the drift

Say = Callable[[str], None]


def verify(
    bundle: str | Path | Bundle,
    artifacts: Sequence[str | Path] = (),
    *,
    runtime: str = AUTO,
    settings: Verify | None = None,
    threat: Threat | None = None,
    device: str = "auto",
    data_dir: str | Path | None = None,
    write: bool = True,
    command: str | None = None,
    say: Say = lambda line: None,
) -> Report:
    """Attack the bundle's network and its artifacts, and judge the artifacts on everything that was found.

    What was found is kept as it comes, so that the same call goes on where an interrupted one stopped;
    several processes (`torchrun`) share the attacks and find what one would.

    Args:
        artifacts: ONNX files and engines, in the bundle or elsewhere, and addresses of served models
            (http://host:port/v2/models/NAME); by default all of the bundle's, see `listing.listed`.
        runtime: what runs files, see `artifacts.subjects`.
        settings: budgets and gates; the recipe's by default.
        threat: the attacks' budget; the one that the network was trained for by default.
        write: keep the report as the bundle's verify.json and report.html.
        command: what a reader of the report may run to repeat it; this very call by default.

    Raises:
        BundleError: if the bundle is damaged, or has no artifact yet.
        ArtifactError: if an artifact is none, or not of this model.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    recipe = opened.recipe()
    settings, threat = settings or recipe.verify, threat or opened.threat
    command = command or (
        f"robust_export.verify({str(opened.path)!r}, {[str(a) for a in artifacts]!r}, runtime={runtime!r}, "
        f"settings={settings!r}, threat={threat!r}, device={device!r}, "
        f"data_dir={data_dir and str(data_dir)!r})"
    )
    seconds: dict[str, float] = {}
    found, elsewhere = listed(opened, artifacts, runtime)
    for name, why in elsewhere.items():
        say(f"not judged: {name}: {why}")
    network = load(opened).requires_grad_(False)
    gates = len(sparta_modules(network))
    judged, not_run = subjects(opened, found, runtime, settings, gates)
    if gates and runtime in (AUTO, "onnxruntime") and ort_library() is None:
        say(why_no_library())
    spec = recipe.model
    images = load_dataset(
        recipe.data.name, "test", spec.image_size, spec.in_chans, data_dir or recipe.data.dir
    )
    count = min(settings.samples or len(images), len(images))
    pixels, labels = images.batch(range(count))
    source = PyTorchClassifier(network, find_device(device), settings.batch_size)
    units = WorkItems(_folder(opened, settings, threat, images, source) if write else None)
    trial = Trial(source, pixels, labels, threat, settings, units, say)

    examples = Examples(pixels.numpy(), labels.numpy(), threat, settings.seed)
    scored = Score(source, examples)
    with _timed(seconds, "attack the source"):
        attacked = attack_source(trial, examples, scored)
    evidence = []
    for subject in judged:
        with _timed(seconds, f"attack {subject.title}"):
            evidence.append(attack_artifact(trial, examples, subject))
    if units.kept:
        say(f"{units.kept} parts of the attacks were there already, from a verification that was interrupted")
    with _timed(seconds, "compare"):
        report = _report(
            opened, trial, scored.update(), attacked, evidence, images, seconds, not_run, elsewhere, command
        )
    if write and units.rank == 0:
        opened.write({REPORT: to_json(report.to_dict()), PAGE: render(report)}, "report")
        units.finish()
    return report


def _report(
    bundle: Bundle, trial: Trial, source: Score, attacked: ReferenceEvidence,
    evidence: Sequence[ArtifactEvidence], images: Images, seconds: dict[str, float],
    not_run: dict[str, str], elsewhere: dict[str, str], command: str,
) -> Report:  # fmt: skip
    """Score everybody on all examples, compare, and judge."""
    settings, threat = trial.settings, trial.threat
    examples = source.examples
    latency = _latency([item.subject for item in evidence], examples.clean)
    reports = [_judge(bundle, trial, source, item, latency) for item in evidence]
    scale, margin = _units_of(source)
    found = attacked.attacked
    budgets = {k: v for k, v in asdict(settings).items() if k not in (*NAMES, "samples")}
    return Report(
        model=bundle.name,
        threat=threat,
        samples=len(examples.labels),
        gates=stated(settings),
        labels=bundle.labels,
        source=ReferenceReport(
            clean=_accuracy(source.clean),
            robust=_accuracy(source.robust),
            attacks=found.accuracy,
            budgets=budgets,
            flags=found.flags,
            logit_scale=scale,
            median_margin=margin,
            guards=guards.masking(
                found.accuracy, attacked.one_step, attacked.many_steps, attacked.everything, found.flags
            ),
            curve=_curve(source, threat),
        ),
        artifacts=reports,
        provenance={
            "created": now(), "versions": versions(), "machine": machine(trial.source.device),
            "data": {"name": images.name, "split": "test", "sha256": images.digest},
            "weights_sha256": bundle.manifest["files"]["weights.safetensors"]["sha256"],
        },
        command=command,
        seconds=seconds,
        not_run=not_run,
        elsewhere=elsewhere,
        pictures=pictures(found.broken_by, source, evidence, reports),
    )  # fmt: skip


def _judge(
    bundle: Bundle, trial: Trial, source: Score, evidence: ArtifactEvidence,
    latency: dict[str, dict[str, float]],
) -> ArtifactReport:  # fmt: skip
    subject, score, settings = evidence.subject, evidence.score.update(), trial.settings
    classifier = subject.classifier
    gates = Criteria.of(settings, classifier.precision, *_units_of(source))
    ours = source.compared()
    compared = {kind: parity(ours[kind], theirs) for kind, theirs in score.compared().items()}
    worst = worst_case(evidence.seen, evidence.random, source.logits["clean"])
    examples = source.examples
    few = examples.clean[:CHECKED]
    checks = [
        guards.finite(list(score.logits.values())),
        *guards.repeatable(classifier, few, gates),
        guards.extremes(trial.source, classifier, few, gates),
        guards.labels_in_order(source.logits["clean"], score.logits["clean"], bundle.labels),
        guards.preprocessing(trial.source, classifier, few, gates, trial.source.normalisation),
        guards.black_box(evidence.accuracy),
    ]
    clean_drop = measure_drop(source.clean, score.clean, gates.max_clean_drop)
    robust_drop = measure_drop(source.robust, score.robust, gates.max_drop)
    failures = [f"{check.name}: {check.evidence}" for check in checks if check.outcome == "fail"]
    verdict = judge(compared, worst, clean_drop, robust_drop, len(examples.labels), gates, failures)
    budgets = {name: getattr(subject.settings, name) for name in ("iterations", "queries", "ascent", "seed")}
    return ArtifactReport(
        file=subject.name, sha256=subject.sha256, bytes=subject.size, runtime=classifier.runtime,
        precision=classifier.precision, sparta_nodes=classifier.sparta_nodes,
        fused_nodes=classifier.fused_nodes(), parity=compared, worst_case=worst,
        clean=_accuracy(score.clean), robust=_accuracy(score.robust), attacks=evidence.accuracy,
        budgets=budgets, clean_drop=clean_drop, robust_drop=robust_drop, guards=checks,
        curve=_curve(score, trial.threat), drift=drift(trial.source, classifier, few),
        latency=latency[subject.title], verdict=verdict.verdict, reasons=verdict.reasons,
        notes=subject.notes,
    )  # fmt: skip


def _units_of(source: Score) -> tuple[float, float]:
    """Return the source's logit scale and its median margin, on the images themselves."""
    clean = source.logits["clean"]
    return logit_scale(clean), float(np.median(margins(clean)))


def _curve(score: Score, threat: Threat) -> list[CurvePoint]:
    return [CurvePoint(eps, float(score.stands(eps).mean())) for eps in radii(threat)]


def _latency(judged: Sequence[Subject], images: Pixels) -> dict[str, dict[str, float]]:
    """Return the median seconds of a call, by artifact and batch size, measured in turns."""
    result: dict[str, dict[str, float]] = {subject.title: {} for subject in judged}
    for batch in BATCHES if judged else ():
        part = np.ascontiguousarray(images[:batch])
        calls = {s.title: lambda s=s, part=part: s.classifier(part) for s in judged}
        for title, timing in measure(calls, rounds=3).items():
            result[title][str(len(part))] = timing.median
    return result


def _accuracy(correct: Correct) -> Accuracy:
    right, n = int(correct.sum()), len(correct)
    if n == 0:
        raise InvalidValue("there are no test images to verify on; raise --samples")
    return Accuracy(right / n, wilson(right, n))


def _folder(
    bundle: Bundle, settings: Verify, threat: Threat, images: Images, source: PyTorchClassifier
) -> Path:
    """Return where the parts of this very verification are kept until it is finished."""
    budgets = {k: v for k, v in asdict(settings).items() if k not in NAMES}
    question = [
        bundle.manifest["files"]["weights.safetensors"]["sha256"], asdict(threat), budgets, images.digest,
        versions(), str(source.device), torch.get_num_threads(),
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    return bundle.path / "checkpoints" / f"verify-{key[:16]}"


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - started, 1)
