"""Verification from end to end: attack the source, then judge each artifact on what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator

from robust_export.attacks.autoattack import AttackResult, autoattack
from robust_export.attacks.pgd import pgd
from robust_export.bundle import Bundle
from robust_export.classifier import Classifier, Logits, Pixels
from robust_export.config import Threat, Verify
from robust_export.data import load_dataset
from robust_export.device import find_device
from robust_export.errors import ArtifactError, BundleError, InvalidValue
from robust_export.files import sha256, write_json
from robust_export.models import load
from robust_export.native import ort_library, why_no_library
from robust_export.provenance import now, versions
from robust_export.runtimes import open_file
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.sparta import sparta_modules
from robust_export.verification.gates import Correct, judge, measure_drop
from robust_export.verification.parity import logit_scale, parity
from robust_export.verification.report import Accuracy, ArtifactReport, Report, SourceReport
from robust_export.verification.statistics import wilson

if TYPE_CHECKING:
    from robust_export.runtimes import ArtifactClassifier

GATES = ("max_drop", "max_gap", "min_agreement")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Inputs:
    """The inputs on which source and artifact are compared, [N, C, H, W] each, and their labels.

    An image's examples are the image itself (`clean`), what AutoAttack made of it (`found`), and a
    PGD example (`descended`), so that an image that AutoAttack could not break is compared under
    attack as well.
    """

    labels: np.ndarray[Any, Any]
    clean: Pixels
    found: Pixels
    descended: Pixels
    noise: Pixels
    broken: Correct  # where `found` is an example, and not the image as it was


@dataclass(frozen=True)
class Answers:
    """What a classifier says to the inputs, asked once each."""

    sets: dict[str, Logits]  # clean, adversarial (the strongest there is of each image), noise
    clean: Correct
    robust: Correct  # right on every example


def verify(
    bundle: str | Path | Bundle,
    artifacts: Sequence[str | Path] = (),
    *,
    runtime: str = "onnxruntime",
    settings: Verify | None = None,
    threat: Threat | None = None,
    device: str = "auto",
    data_dir: str | Path | None = None,
    write: bool = True,
    say: Say = lambda line: None,
) -> Report:
    """Attack the bundle's network, and judge its artifacts on the examples that were found.

    Args:
        artifacts: ONNX files, in the bundle or elsewhere; all of the bundle's by default.
        runtime: what runs them, "onnxruntime" or "openvino". ONNX Runtime runs each as a stock one does, with
            the file's function body, and with the fused kernel as well where that is built.
        settings: budgets and gates; the recipe's by default.
        threat: the attacks' budget; the one that the network was trained for by default.
        write: keep the report as the bundle's verify.json.

    Raises:
        BundleError: if the bundle is damaged, or has no artifact yet.
        ArtifactError: if an artifact is none, or not of this model.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    recipe = opened.recipe()
    settings, threat = settings or recipe.verify, threat or opened.threat
    seconds: dict[str, float] = {}
    files = _artifact_files(opened, artifacts)
    network = load(opened)
    wants_sparta = len(sparta_modules(network))
    judged = [(file, c) for file in files for c in open_artifact(file, opened, wants_sparta, runtime)]
    if wants_sparta and runtime == "onnxruntime" and ort_library() is None:
        say(why_no_library())
    spec = recipe.model
    images = load_dataset(
        recipe.data.name, "test", spec.image_size, spec.in_chans, data_dir or recipe.data.dir
    )
    count = min(settings.samples or len(images), len(images))
    pixels, labels = images.batch(range(count))
    source = PyTorchClassifier(network, find_device(device), settings.batch_size)

    with _timed(seconds, "attack"):
        attacked = autoattack(
            source.module, pixels.to(source.device), labels.to(source.device), threat, settings,
            lambda name, n: say(f"{name}: attacking {n} images"),
        )  # fmt: skip
        inputs = _inputs(source, pixels, labels, attacked, threat, settings)
    with _timed(seconds, "compare"):
        answers = ask(source, inputs)
        scale = logit_scale(answers.sets["clean"])
        reports = []
        for file, classifier in judged:
            fused = ", fused" if getattr(classifier, "kernel_file", None) else ""
            say(f"comparing {file.name} on {classifier.runtime}{fused}")
            theirs = ask(classifier, inputs)
            reports.append(_judge(opened, file, classifier, answers, theirs, scale, settings))
    report = Report(
        model=opened.name,
        threat=threat,
        samples=count,
        gates={name: getattr(settings, name) for name in GATES},
        source=SourceReport(
            clean=_accuracy(answers.clean),
            robust=_accuracy(answers.robust),
            attacks=attacked.accuracy,
            budgets={k: v for k, v in asdict(settings).items() if k not in (*GATES, "samples")},
            flags=attacked.flags,
            logit_scale=scale,
        ),
        artifacts=reports,
        provenance={
            "created": now(), "versions": versions(),
            "data": {"name": images.name, "split": "test", "sha256": images.digest},
            "weights_sha256": opened.manifest["files"]["weights.safetensors"]["sha256"],
        },
        seconds=seconds,
    )  # fmt: skip
    if write:
        write_json(opened.path / "verify.json", report.to_dict())
        opened.add("verify.json", "report")
    return report


def open_artifact(
    file: Path, bundle: Bundle, wants_sparta: int, runtime: str = "onnxruntime"
) -> list[ArtifactClassifier]:
    """Return the artifact as a classifier in each way the runtime has to run it.

    Raises:
        ArtifactError: if it is no ONNX classifier, takes other images, has other labels, or lacks
            the Sparta operator though the network has `wants_sparta` gates.
    """
    if file.suffix != ".onnx":
        raise ArtifactError(f"{file} is no artifact that can be verified; expected an .onnx file")
    if runtime != "onnxruntime":
        classifiers = [open_file(file, runtime)]
    else:
        classifiers = [open_file(file, kernel=False)]
        if wants_sparta and ort_library() is not None:
            fused = OnnxRuntimeClassifier(file)
            classifiers += [fused] if fused.kernel_file else []
    _check_identity(classifiers[0], file, bundle, wants_sparta)
    return classifiers


def _check_identity(classifier: ArtifactClassifier, file: Path, bundle: Bundle, wants_sparta: int) -> None:
    spec = bundle.recipe().model
    plane = (spec.in_chans, spec.image_size, spec.image_size)
    if classifier.plane != plane:
        raise ArtifactError(f"{file} takes images {list(classifier.plane)}; {bundle.name} {list(plane)}")
    if classifier.labels is not None and classifier.labels != bundle.labels:
        raise ArtifactError(
            f"{file} has other labels than {bundle.name}:\n  file:  {', '.join(classifier.labels)}\n"
            f"  model: {', '.join(bundle.labels)}\nExport it again from this bundle."
        )
    if classifier.classes != len(bundle.labels):
        raise ArtifactError(
            f"{file} has {classifier.classes} classes; {bundle.name} has {len(bundle.labels)}"
        )
    if wants_sparta and not classifier.sparta_nodes:
        raise ArtifactError(
            f"{file} has no ai.sparta::Sparta node, but {bundle.name} is a Sparta network. Export "
            "it with `robust-export onnx`."
        )


def ask(classifier: Classifier, inputs: Inputs) -> Answers:
    """Return the classifier's logits, and which images it gets right, clean and under attack."""
    clean, found = classifier(inputs.clean), classifier(inputs.found)
    descended, noise = classifier(inputs.descended), classifier(inputs.noise)
    right = [logits.argmax(1) == inputs.labels for logits in (clean, found, descended)]
    strongest = np.where(inputs.broken[:, None], found, descended)
    sets = {"clean": clean, "adversarial": strongest, "noise": noise}
    return Answers(sets, right[0], np.logical_and.reduce(right))


def _artifact_files(bundle: Bundle, given: Sequence[str | Path]) -> list[Path]:
    """Return the files to judge; a bare name is looked up in the bundle first."""
    if not given:
        names = bundle.files("onnx")
        if not names:
            raise BundleError(
                f"bundle {bundle.path} has no artifact yet. Make one with "
                f"`robust-export onnx --model {bundle.name}`."
            )
        return [bundle.file(name) for name in names]
    inside = [bundle.path / name for name in given]
    files = [a if a.is_file() else Path(b) for a, b in zip(inside, given, strict=True)]
    if missing := [file for file in files if not file.is_file()]:
        raise ArtifactError(f"there is no artifact {missing[0]}")
    return files


def _inputs(
    source: PyTorchClassifier, pixels: torch.Tensor, labels: torch.Tensor, attacked: AttackResult,
    threat: Threat, settings: Verify,
) -> Inputs:  # fmt: skip
    generator = Generator().manual_seed(settings.seed)
    steps = 20
    chunks = zip(pixels.split(settings.batch_size), labels.split(settings.batch_size), strict=True)
    descended = torch.cat([
        pgd(
            source.module, x.to(source.device), y.to(source.device), threat,
            steps=steps, step_size=2.5 * threat.eps / steps, generator=generator,
        ).cpu()
        for x, y in chunks
    ])  # fmt: skip
    noise = torch.rand(pixels.shape, generator=generator)
    broken = np.array([name not in ("", "clean") for name in attacked.broken_by])
    return Inputs(
        labels.numpy(), pixels.numpy(), attacked.adversarial.cpu().numpy(), descended.numpy(),
        noise.numpy(), broken,
    )  # fmt: skip


def _judge(
    bundle: Bundle, file: Path, classifier: ArtifactClassifier, ours: Answers, theirs: Answers,
    scale: float, gates: Verify,
) -> ArtifactReport:  # fmt: skip
    compared = {name: parity(logits, theirs.sets[name]) for name, logits in ours.sets.items()}
    clean_drop = measure_drop(ours.clean, theirs.clean, gates.max_drop)
    robust_drop = measure_drop(ours.robust, theirs.robust, gates.max_drop)
    verdict = judge(compared, {"clean": clean_drop, "robust": robust_drop}, scale, gates)
    inside = file.parent == bundle.path
    return ArtifactReport(
        file=file.name if inside else str(file), sha256=sha256(file),
        runtime=classifier.runtime, precision=classifier.precision,
        sparta_nodes=classifier.sparta_nodes, fused_nodes=classifier.fused_nodes(),
        parity=compared, clean=_accuracy(theirs.clean), robust=_accuracy(theirs.robust),
        attacks={"transfer": float(theirs.robust.mean())},
        clean_drop=clean_drop, robust_drop=robust_drop,
        verdict=verdict.verdict, reasons=verdict.reasons,
    )  # fmt: skip


def _accuracy(correct: Correct) -> Accuracy:
    right, n = int(correct.sum()), len(correct)
    if n == 0:
        raise InvalidValue("there are no test images to verify on; raise --samples")
    return Accuracy(right / n, wilson(right, n))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - started, 1)
