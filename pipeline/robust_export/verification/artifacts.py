"""How artifacts run here: each file in every way that this machine can, each served model as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, reason
from robust_export.kernels.libraries import ort_library
from robust_export.recipe.schema import Verify
from robust_export.runtimes.classifier import Artifact
from robust_export.runtimes.onnx_model import HALVES, precision_of, read_model
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.ort_gpu import PROVIDERS
from robust_export.runtimes.registry import is_url, open_file, open_url
from robust_export.runtimes.tensorrt.classifier import NoGPU
from robust_export.utils.files import sha256
from robust_export.verification.selection import AUTO, ENGINE

SLOW = {"iterations": 10, "queries": 50, "ascent": 5}  # budgets on the reference evaluator, at most


class NoRuntime(ArtifactError):
    """An artifact that nothing on this machine can run."""


@dataclass(frozen=True)
class Subject:
    """One artifact on one runtime.

    Attributes:
        settings: budgets of the attacks on it.
        notes: what a reader must know of how it was judged.
    """

    name: str
    classifier: Artifact
    settings: Verify
    file: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def kernel(self) -> Path | None:
        """The library whose kernel runs it fused, None where none does."""
        kernel: Path | None = getattr(self.classifier, "kernel_file", None)
        return kernel

    @property
    def title(self) -> str:
        return f"{self.name} on {self.classifier.runtime}{', fused' if self.kernel else ''}"

    @cached_property
    def sha256(self) -> str | None:
        return sha256(self.file) if self.file else None

    def given(self, *more: bytes) -> list[bytes] | None:
        """Return all that decides how it answers, whatever it is called, and `more`, for `WorkItems.run`.

        None for a server: what answers there after an interruption may be another model.
        """
        if self.sha256 is None:
            return None
        kernel = sha256(self.kernel) if self.kernel else "none"
        return [*(text.encode() for text in (self.sha256, self.classifier.runtime, kernel)), *more]

    @property
    def size(self) -> int | None:
        return self.file.stat().st_size if self.file else None


def subjects(
    bundle: Bundle, found: Sequence[str | Path], runtime: str, settings: Verify, wants_sparta: int
) -> tuple[list[Subject], dict[str, str]]:
    """Return every way in which the artifacts run here, and those that do not run, with the reason.

    Args:
        runtime: "auto", or one that is to run all files. "auto" is ONNX Runtime, as a stock one runs the file
            and fused where the kernel is built; and the ONNX reference evaluator for a precision that ONNX
            Runtime has no arithmetic for here.
        wants_sparta: how many gates the network has.

    Raises:
        ArtifactError: if one is no classifier, takes other images, has other labels, or lacks the Sparta
            operator though the network has gates.
    """
    result, not_run = [], {}
    for item in found:
        try:
            judged = (
                _served(str(item), settings)
                if is_url(str(item))
                else _run(bundle, Path(item), runtime, settings)
            )
        except NoRuntime as error:
            not_run[_name(bundle, Path(item))] = str(error)
            continue
        for subject in judged:
            _check_identity(subject, bundle, wants_sparta)
            result.append(subject)
    return result, not_run


def _name(bundle: Bundle, file: Path) -> str:
    return file.name if file.parent == bundle.path else str(file)


def _served(url: str, settings: Verify) -> list[Subject]:
    note = "a server does not say what precision it computes in; the gates of fp32 hold"
    return [Subject(url, open_url(url), settings, notes=[note])]


def _run(bundle: Bundle, file: Path, runtime: str, settings: Verify) -> list[Subject]:
    def subject(classifier: Any, notes: Sequence[str] = ()) -> Subject:
        return Subject(_name(bundle, file), classifier, settings, file, list(notes))

    if file.suffix == ENGINE:
        return [subject(_engine(file, runtime))]
    if file.suffix != ".onnx" or runtime == "tensorrt":
        raise ArtifactError(
            f"{file} cannot be verified on {'any runtime' if runtime == AUTO else runtime}; expected an "
            ".onnx file, or an .engine that `robust-export tensorrt` wrote for --runtime tensorrt"
        )
    if runtime in PROVIDERS:
        return [subject(open_file(file, runtime))]
    if runtime not in (AUTO, "onnxruntime"):
        one = subject(open_file(file, runtime))
        return [_slowly(one) if runtime == "reference" else one]
    try:
        stock = OnnxRuntimeClassifier(file, kernel=False, spin=False)  # PyTorch computes in turns with it
    except ArtifactError as error:
        if runtime != AUTO or precision_of(read_model(file)) not in HALVES.values():
            raise
        if slow := _reference(subject, file, reason(error)):
            return [slow]
        raise NoRuntime(reason(error)) from error
    if runtime == AUTO and stock.falls_back:
        why = f"ONNX Runtime has no {stock.precision} arithmetic here and computes in another precision"
        if slow := _reference(subject, file, why):
            return [slow]
    result = [subject(stock)]
    if stock.sparta_nodes and ort_library() is not None:
        fused = OnnxRuntimeClassifier(file, spin=False)
        result += [subject(fused)] if fused.kernel_file else []
    return result


def _engine(file: Path, runtime: str) -> Artifact:
    """Return an engine as a classifier.

    Raises:
        NoRuntime: if this machine has not the GPU that it needs.
    """
    if runtime not in (AUTO, "tensorrt"):
        raise ArtifactError(f"{file} is an engine, which {runtime} cannot run; leave --runtime out")
    try:
        return open_file(file, "tensorrt")
    except NoGPU as error:
        raise NoRuntime(str(error)) from error


def _reference(subject: Callable[..., Subject], file: Path, why: str) -> Subject | None:
    """Return the file on the ONNX reference evaluator, if that is of any use: it is a half-precision file."""
    try:
        classifier = open_file(file, "reference")
    except ArtifactError:
        return None
    if classifier.precision not in HALVES.values():
        return None
    return _slowly(subject(classifier, [f"{why}: the ONNX reference evaluator judges"]))


def _slowly(subject: Subject) -> Subject:
    """Return the subject with budgets that an interpreter can serve."""
    given = subject.settings
    less = {name: min(getattr(given, name), most) for name, most in SLOW.items()}
    stated = ", ".join(f"{name} {value}" for name, value in less.items())
    note = f"the reference evaluator is slow; budgets of its own: {stated}"
    return replace(subject, settings=replace(given, **less), notes=[*subject.notes, note])


def _check_identity(subject: Subject, bundle: Bundle, wants_sparta: int) -> None:
    spec, classifier, name = bundle.recipe().model, subject.classifier, subject.name
    plane = (spec.in_chans, spec.image_size, spec.image_size)
    if classifier.plane != plane:
        raise ArtifactError(f"{name} takes images {list(classifier.plane)}; {bundle.name} {list(plane)}")
    if classifier.labels is not None and classifier.labels != bundle.labels:
        raise ArtifactError(
            f"{name} has other labels than {bundle.name}:\n  file:  {', '.join(classifier.labels)}\n"
            f"  model: {', '.join(bundle.labels)}\nExport it again from this bundle."
        )
    if classifier.classes != len(bundle.labels):
        raise ArtifactError(
            f"{name} has {classifier.classes} classes; {bundle.name} has {len(bundle.labels)}"
        )
    if subject.file and wants_sparta and not classifier.sparta_nodes:
        raise ArtifactError(
            f"{name} has no ai.sparta::Sparta node, but {bundle.name} is a Sparta network. Export "
            "it with `robust-export onnx`."
        )
