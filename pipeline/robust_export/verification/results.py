"""Result types of a verification, from a single check to the whole report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Pixels

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Interval = tuple[float, float]
Outcome = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True)
class Accuracy:
    """A fraction of correctly classified images, with its Wilson interval (95 %)."""

    value: float
    ci95: Interval


@dataclass(frozen=True)
class Drop:
    """Accuracy of the reference model minus that of the artifact, on the same images."""

    drop: float
    ci95: Interval
    samples_needed: (
        int | None
    )  # images in total that decide at the observed rates; None: more than 10 million


@dataclass(frozen=True)
class Parity:
    """Differences between the logits of the reference model and of the artifact on a set of inputs."""

    max_abs: float
    mean_abs: float
    cosine: float  # smallest cosine similarity of the two logit vectors of an input
    top1_agreement: float  # fraction of inputs with the same prediction
    non_finite: int  # logits of the artifact that are NaN or infinite


@dataclass(frozen=True)
class SanityCheck:
    """The outcome of one check.

    "fail" fails the artifact. "warn" says that the measured robust accuracy may be too high.
    """

    name: str
    outcome: Literal["ok", "warn", "fail"]
    evidence: str


@dataclass(frozen=True)
class CurvePoint:
    """Robust accuracy at one radius under PGD on the reference model, counting all smaller radii."""

    eps: float
    accuracy: float


@dataclass(frozen=True)
class LogitDifferences:
    """Summary of the logit differences on a set of inputs."""

    max_abs: float
    flips: int  # inputs with different predictions
    flip_margin: float  # largest top-2 margin of the reference model at a flip; 0 without flips
    evaluations: int  # number of inputs


@dataclass(frozen=True)
class WorstCase(LogitDifferences):
    """Result of the worst-case search, and of as many random inputs."""

    random: LogitDifferences
    at_risk: float  # fraction of images with a margin below 2 max_abs, where such a difference could flip


@dataclass(frozen=True)
class LayerError:
    """Relative L2 error of one activation, ||artifact - reference|| / ||reference||, on clean images."""

    site: str
    error: float


@dataclass(frozen=True)
class ReferenceReport:
    """Accuracy of the reference model, clean and under attack.

    Attributes:
        attacks: robust accuracy after each attack, cumulative.
        flags: AutoAttack's own warnings.
        logit_scale: median over the clean images of the largest logit minus the smallest.
        median_margin: median over the clean images of the top-2 margin.
    """

    clean: Accuracy
    robust: Accuracy
    attacks: dict[str, float]
    budgets: dict[str, Any]
    flags: list[str]
    logit_scale: float
    median_margin: float
    checks: list[SanityCheck]
    curve: list[CurvePoint]


@dataclass(frozen=True)
class ArtifactReport:
    """One artifact on one runtime, compared with the reference model on the same inputs.

    Attributes:
        sha256, bytes: None for a served model.
        attacks: robust accuracy after each attack, cumulative: transfer, bpda, square, worst_case.
        budgets: of the attacks on this artifact.
        layer_errors: empty if the runtime does not expose activations.
        latency: median seconds of a call, by batch size.
        notes: attacks that did not run, special budgets, and other remarks on how it was judged.
    """

    file: str
    sha256: str | None
    bytes: int | None
    runtime: str
    precision: str
    sparta_nodes: int
    fused_nodes: int
    parity: dict[str, Parity]
    worst_case: WorstCase
    clean: Accuracy
    robust: Accuracy
    attacks: dict[str, float]
    budgets: dict[str, Any]
    clean_drop: Drop
    robust_drop: Drop
    checks: list[SanityCheck]
    curve: list[CurvePoint]
    layer_errors: list[LayerError]
    latency: dict[str, float]
    verdict: Outcome
    reasons: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """Runtime, precision and number of fused nodes, such as "onnxruntime fp32 (fused)"."""
        count = f"{self.fused_nodes} of {self.sparta_nodes} " if self.fused_nodes < self.sparta_nodes else ""
        fused = f" ({count}fused)" if self.fused_nodes else ""
        precision = "" if self.precision == "unknown" else f" {self.precision}"
        return f"{self.runtime}{precision}{fused}"

    @property
    def title(self) -> str:
        """A name that is unique in the report, such as "model.onnx on onnxruntime fp32"."""
        return f"{self.file} on {self.where}"


@dataclass(frozen=True)
class Example:
    """An image and its adversarial example, with the predictions of all classifiers.

    Attributes:
        clean, adversarial: [C, H, W].
        predictions: by "reference" or an artifact's title: the classes of the clean and the adversarial
            image.
    """

    label: int
    clean: Pixels
    adversarial: Pixels
    attack: str
    predictions: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class InputDifferences:
    """Logit differences of single inputs, [M] each.

    Attributes:
        margin: top-2 margin of the reference model.
        max_abs: largest absolute difference of a logit.
        flipped: whether the predictions differ.
    """

    margin: Floats
    max_abs: Floats
    flipped: Bools


@dataclass(frozen=True)
class PlotData:
    """Data that only report.html shows. Keys are `ArtifactReport.title`.

    Attributes:
        search: inputs that the worst-case search visited.
        max_abs: by kind of input ("clean", ...), the largest logit difference of each input, [N].
    """

    examples: list[Example] = field(default_factory=list)
    search: dict[str, InputDifferences] = field(default_factory=dict)
    max_abs: dict[str, dict[str, Floats]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The verification of a model.

    Attributes:
        criteria: the limits as the recipe states them, by precision where they depend on it.
        command: repeats the verification.
        not_run: artifacts that no runtime on this machine can run, and why.
        elsewhere: engines that are for other machines, and why.
    """

    model: str
    threat: Threat
    samples: int
    criteria: dict[str, Any]
    labels: list[str]
    reference: ReferenceReport
    artifacts: list[ArtifactReport]
    provenance: dict[str, Any]
    command: str
    seconds: dict[str, float] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    plot_data: PlotData = field(default_factory=PlotData, compare=False)

    @property
    def verdict(self) -> Outcome:
        """The worst verdict of all artifacts; "undecided" if an artifact did not run or there is none."""
        verdicts = {artifact.verdict for artifact in self.artifacts}
        if "fail" in verdicts:
            return "fail"
        return "pass" if verdicts == {"pass"} and not self.not_run else "undecided"
