"""Verification: attack reference model and artifacts, compare them, decide the verdicts, write the report."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from robust_export.bundle import Bundle
from robust_export.data.datasets import Images, load_dataset
from robust_export.kernels.libraries import ort_library, why_no_ort_library
from robust_export.nn.load import load
from robust_export.nn.sparta import sparta_modules
from robust_export.recipe.schema import Threat, Verify
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.utils.device import find_device
from robust_export.utils.files import to_json
from robust_export.utils.provenance import machine, now, versions
from robust_export.utils.work_items import WorkItems
from robust_export.verification.artifact_runs import open_artifacts
from robust_export.verification.attack_artifact import attack_artifact
from robust_export.verification.attack_reference import attack_reference
from robust_export.verification.criteria import NAMES, criteria_table
from robust_export.verification.evaluate import compare_artifacts, reference_report
from robust_export.verification.examples import Evaluation, Examples
from robust_export.verification.report.html import render
from robust_export.verification.report.plot_data import plot_data
from robust_export.verification.report.verify_json import to_dict
from robust_export.verification.results import Report
from robust_export.verification.selection import AUTO, select_artifacts
from robust_export.verification.setup import Say, Setup

VERIFY_JSON, PAGE = "verify.json", "report.html"
WORK_ITEM_FORMAT = 2  # of the results kept under checkpoints/; another one is not read


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
    """Attack the bundle's network and its artifacts, and decide whether each artifact passes.

    Results of the attacks are kept in the bundle until the verification is complete, so that the same call
    resumes an interrupted one. Several processes (`torchrun`) share the attacks; the result does not depend
    on their number.

    Args:
        artifacts: ONNX files and engines, in the bundle or elsewhere, and URLs of served models
            (http://host:port/v2/models/NAME). Empty: all of the bundle's, see `selection.select_artifacts`.
        runtime: for files, see `artifact_runs.open_artifacts`.
        settings: budgets and limits; the recipe's by default.
        threat: norm and eps of the attacks; those of the training by default.
        write: write verify.json and report.html into the bundle.
        command: repeats the verification, for the report; this call by default.

    Raises:
        BundleError: if the bundle is damaged, or has no artifact yet.
        ArtifactError: if a file is not an artifact, or not of this model.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    recipe = opened.recipe()
    settings, threat = settings or recipe.verify, threat or opened.threat
    command = command or (
        f"robust_export.verify({str(opened.path)!r}, {[str(a) for a in artifacts]!r}, runtime={runtime!r}, "
        f"settings={settings!r}, threat={threat!r}, device={device!r}, "
        f"data_dir={data_dir and str(data_dir)!r})"
    )

    network = load(opened).requires_grad_(False)
    selected, elsewhere = select_artifacts(opened, artifacts, runtime)
    for name, why in elsewhere.items():
        say(f"not verified: {name}: {why}")
    sparta_count = len(sparta_modules(network))
    runs, not_run = open_artifacts(opened, selected, runtime, settings, sparta_count)
    if sparta_count and runtime in (AUTO, "onnxruntime") and ort_library() is None:
        say(why_no_ort_library())

    spec = recipe.model
    dataset = load_dataset(
        recipe.data.name, "test", spec.image_size, spec.in_chans, data_dir or recipe.data.dir
    )
    images, labels = dataset.batch(range(min(settings.samples or len(dataset), len(dataset))))
    reference = PyTorchClassifier(network, find_device(device), settings.batch_size)
    work_items = WorkItems(_folder(opened, settings, threat, dataset, reference) if write else None)
    setup = Setup(reference, images, labels, threat, settings, work_items, say)
    examples = Examples(images.numpy(), labels.numpy(), threat, settings.seed)
    evaluation = Evaluation(reference, examples)

    seconds: dict[str, float] = {}
    with _timed(seconds, "attack the reference model"):
        attacked = attack_reference(setup, examples, evaluation)
    attacked_artifacts = []
    for run in runs:
        with _timed(seconds, f"attack {run.title}"):
            attacked_artifacts.append(attack_artifact(setup, examples, run))
    if work_items.reused:
        say(f"reused {work_items.reused} batches of attacks from an interrupted verification")
    with _timed(seconds, "compare"):
        evaluation.update()
        artifact_reports = compare_artifacts(setup, evaluation, attacked_artifacts, opened.labels)
        plots = plot_data(attacked.autoattack.broken_by, evaluation, attacked_artifacts, artifact_reports)

    report = Report(
        model=opened.name, threat=threat, samples=len(labels), criteria=criteria_table(settings),
        labels=opened.labels, reference=reference_report(setup, evaluation, attacked),
        artifacts=artifact_reports,
        provenance=_provenance(opened, dataset, reference), command=command, seconds=seconds,
        not_run=not_run, elsewhere=elsewhere, plot_data=plots,
    )  # fmt: skip
    if write and work_items.rank == 0:
        opened.write({VERIFY_JSON: to_json(to_dict(report)), PAGE: render(report)}, "report")
        work_items.finish()
    return report


def _provenance(bundle: Bundle, dataset: Images, reference: PyTorchClassifier) -> dict[str, Any]:
    return {
        "created": now(), "versions": versions(), "machine": machine(reference.device),
        "data": {"name": dataset.name, "split": "test", "sha256": dataset.digest},
        "weights_sha256": _weights_sha256(bundle),
    }  # fmt: skip


def _weights_sha256(bundle: Bundle) -> str:
    return str(bundle.manifest["files"]["weights.safetensors"]["sha256"])


def _folder(
    bundle: Bundle, settings: Verify, threat: Threat, dataset: Images, reference: PyTorchClassifier
) -> Path:
    """Return the folder of the work items, whose name depends on everything that their results depend on."""
    budgets = {name: value for name, value in asdict(settings).items() if name not in NAMES}
    inputs = [
        WORK_ITEM_FORMAT, _weights_sha256(bundle), asdict(threat), budgets, dataset.digest, versions(),
        str(reference.device), torch.get_num_threads(),
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    return bundle.path / "checkpoints" / f"verify-{key[:16]}"


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - started, 1)
