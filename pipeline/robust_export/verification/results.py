"""What verification found, as verify.json holds it. `tables` and `page` show it to people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Pixels
from robust_export.verification.criteria import Drop, Outcome
from robust_export.verification.parity import Bools, Floats, Parity
from robust_export.verification.statistics import Interval

SCHEMA = 1


@dataclass(frozen=True)
class Accuracy:
    """A share of images that are classified right, with its Wilson interval."""

    value: float
    ci95: Interval


@dataclass(frozen=True)
class SanityCheck:
    """A check against fooling ourselves, with what it saw.

    "fail" breaks the artifact's verdict; "warn" says that a figure may not mean what it seems to.
    """

    name: str
    outcome: Literal["ok", "warn", "fail"]
    evidence: str


@dataclass(frozen=True)
class CurvePoint:
    """Robust accuracy at one radius, under PGD on the source (every example of a smaller radius counts)."""

    eps: float
    accuracy: float


@dataclass(frozen=True)
class Searched:
    """What a search found: where source and artifact differ most, and where they decide differently."""

    max_abs: float  # largest |difference| of a logit
    flips: int  # inputs on which the decisions differ
    flip_margin: float  # largest top-2 margin of the source at a flip; 0 without flips
    evaluations: int  # inputs on which both were asked


@dataclass(frozen=True)
class WorstCase(Searched):
    """The worst that was found in the ball, and what as many random inputs would have shown."""

    random: Searched
    at_risk: float  # share of the images whose decision a gap of max_abs could turn, were it there


@dataclass(frozen=True)
class LayerError:
    """How far an activation's plane is from the source's, on clean images."""

    site: str
    drift: float  # ||artifact - source|| / ||source||, L2 over all images and elements


@dataclass(frozen=True)
class ReferenceReport:
    """The PyTorch network's own accuracy, clean and under attack."""

    clean: Accuracy
    robust: Accuracy
    attacks: dict[str, float]  # robust accuracy after each attack, cumulative
    budgets: dict[str, Any]
    flags: list[str]  # AutoAttack's own warnings
    logit_scale: float  # median over clean images of the largest logit minus the smallest
    median_margin: float  # median over clean images of the top-2 margin
    guards: list[SanityCheck]
    curve: list[CurvePoint]


@dataclass(frozen=True)
class ArtifactReport:
    """An artifact, compared with the source on the same inputs."""

    file: str
    sha256: str | None  # None for a server
    bytes: int | None
    runtime: str
    precision: str
    sparta_nodes: int
    fused_nodes: int
    parity: dict[str, Parity]
    worst_case: WorstCase
    clean: Accuracy
    robust: Accuracy
    attacks: dict[str, float]  # robust accuracy after each attack, cumulative: transfer, bpda, square
    budgets: dict[str, Any]  # of the attacks on this artifact
    clean_drop: Drop
    robust_drop: Drop
    guards: list[SanityCheck]
    curve: list[CurvePoint]
    drift: list[LayerError]  # empty where the runtime shows nothing of its inside
    latency: dict[str, float]  # median seconds of a call, by batch size
    verdict: Outcome
    reasons: list[str]
    notes: list[str] = field(default_factory=list)  # what was not run, and why

    @property
    def where(self) -> str:
        """What ran it, in a few words."""
        some = f"{self.fused_nodes} of {self.sparta_nodes} " if self.fused_nodes < self.sparta_nodes else ""
        fused = f" ({some}fused)" if self.fused_nodes else ""
        precision = "" if self.precision == "unknown" else f" {self.precision}"
        return f"{self.runtime}{precision}{fused}"


@dataclass(frozen=True)
class Example:
    """An image and what an attack made of it, with everybody's decisions on both."""

    label: int
    clean: Pixels  # [C, H, W]
    adversarial: Pixels  # [C, H, W]
    attack: str
    decisions: dict[str, tuple[int, int]]  # by "source" or an artifact's title: on clean, on adversarial


@dataclass(frozen=True)
class Points:
    """Inputs that the worst-case search visited, for a plot of gap against margin."""

    margin: Floats  # [M] top-2 margin of the source
    gap: Floats  # [M] largest |difference| of a logit
    flipped: Bools  # [M]


@dataclass(frozen=True)
class Pictures:
    """What only the page shows. Keys are artifacts' titles, as `title` gives them."""

    examples: list[Example] = field(default_factory=list)
    points: dict[str, Points] = field(default_factory=dict)
    gaps: dict[str, dict[str, Floats]] = field(default_factory=dict)  # title, kind of input: gaps [N]


@dataclass(frozen=True)
class Report:
    """The whole verification of a model."""

    model: str
    threat: Threat
    samples: int
    gates: dict[str, Any]
    labels: list[str]
    source: ReferenceReport
    artifacts: list[ArtifactReport]
    provenance: dict[str, Any]
    command: str  # that repeats it
    seconds: dict[str, float] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)  # artifacts that nothing here can run, and why
    elsewhere: dict[str, str] = field(default_factory=dict)  # engines for other machines, and why
    pictures: Pictures = field(default_factory=Pictures, compare=False)

    @property
    def verdict(self) -> Outcome:
        """Return the worst verdict of all artifacts; what was not run, or is not there, is not decided."""
        verdicts = {artifact.verdict for artifact in self.artifacts}
        if "fail" in verdicts:
            return "fail"
        return "pass" if verdicts == {"pass"} and not self.not_run else "undecided"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as verify.json holds it."""
        source = self.source
        return {
            "schema": SCHEMA, "model": self.model, "threat": asdict(self.threat),
            "samples": self.samples, "verdict": self.verdict, "gates": self.gates,
            "source": {
                **_accuracies(source.clean, source.robust), "attacks": source.attacks,
                "budgets": source.budgets, "flags": source.flags,
                "logit_scale": source.logit_scale, "median_margin": source.median_margin,
                "guards": _plain(source.guards), "curve": _plain(source.curve),
            },
            "artifacts": [_artifact(artifact) for artifact in self.artifacts],
            "not_run": self.not_run, "elsewhere": self.elsewhere, "seconds": self.seconds,
            "command": self.command, "provenance": self.provenance,
        }  # fmt: skip


def title(artifact: ArtifactReport) -> str:
    """Return how an artifact is called where several stand side by side."""
    return f"{artifact.file} on {artifact.where}"


def _artifact(item: ArtifactReport) -> dict[str, Any]:
    robust = item.robust_drop
    worst = asdict(item.worst_case)
    return {
        "file": item.file, "sha256": item.sha256, "bytes": item.bytes, "runtime": item.runtime,
        "precision": item.precision, "fused_nodes": item.fused_nodes,
        "sparta_nodes": item.sparta_nodes,
        "parity": {**{name: asdict(p) for name, p in item.parity.items()}, "worst_case": worst},
        **_accuracies(item.clean, item.robust), "attacks": item.attacks, "budgets": item.budgets,
        "drop": robust.drop, "drop_ci95": list(robust.ci95),
        "clean_drop": item.clean_drop.drop, "clean_drop_ci95": list(item.clean_drop.ci95),
        "verdict": item.verdict, "samples_needed": robust.samples_needed, "reasons": item.reasons,
        "notes": item.notes, "guards": _plain(item.guards), "curve": _plain(item.curve),
        "drift": _plain(item.drift), "latency": item.latency,
    }  # fmt: skip


def _plain(items: list[Any]) -> list[Mapping[str, Any]]:
    return [asdict(item) for item in items]


def _accuracies(clean: Accuracy, robust: Accuracy) -> dict[str, Any]:
    return {
        "clean_accuracy": clean.value, "clean_accuracy_ci95": list(clean.ci95),
        "robust_accuracy": robust.value, "robust_accuracy_ci95": list(robust.ci95),
    }  # fmt: skip
