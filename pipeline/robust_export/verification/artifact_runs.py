"""Artifact runs: each artifact on every runtime it is verified on, with the budgets of the attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, reason
from robust_export.kernels.libraries import ort_library
from robust_export.recipe.schema import Verify
from robust_export.runtimes.classifier import Artifact
from robust_export.runtimes.onnx_model import HALF_PRECISIONS, model_precision, read_model
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.registry import is_url, open_file, open_url
from robust_export.runtimes.tensorrt.classifier import NoGPU
from robust_export.utils.files import sha256
from robust_export.verification.selection import AUTO

ENGINE = ".engine"
REFERENCE_EVALUATOR_BUDGETS = {"iterations": 10, "queries": 50, "ascent": 5}  # at most; it is slow


class NoRuntime(ArtifactError):
    """Raised for an artifact that no runtime on this machine can run."""


@dataclass(frozen=True)
class ArtifactRun:
    """One artifact on one runtime.

    Attributes:
        name: of the file, or the URL.
        settings: budgets of the attacks on it.
        file, sha256: None for a served model.
        notes: remarks for the report on how it is judged.
    """

    name: str
    classifier: Artifact
    settings: Verify
    file: Path | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def kernel(self) -> Path | None:
        """The library of the fused kernel, None if the file runs without it."""
        kernel: Path | None = getattr(self.classifier, "kernel_file", None)
        return kernel

    @property
    def title(self) -> str:
        return f"{self.name} on {self.classifier.runtime}{', fused' if self.kernel else ''}"

    @property
    def size(self) -> int | None:
        return self.file.stat().st_size if self.file else None

    @cached_property
    def _kernel_sha256(self) -> str:
        return sha256(self.kernel) if self.kernel else "none"

    def depends_on(self, *more: bytes) -> list[bytes] | None:
        """Return what its logits depend on, and `more`, for `WorkItems.run`.

        None for a served model: after an interruption, another model may answer at the same URL.
        """
        if self.sha256 is None:
            return None
        return [*(t.encode() for t in (self.sha256, self.classifier.runtime, self._kernel_sha256)), *more]


def open_artifacts(
    bundle: Bundle, artifacts: Sequence[str | Path], runtime: str, settings: Verify, sparta_modules: int
) -> tuple[list[ArtifactRun], dict[str, str]]:
    """Open the artifacts; return their runs, and the artifacts that cannot run here, with the reason.

    Args:
        runtime: "auto", or the runtime for all files. "auto" runs an ONNX file on stock ONNX Runtime, and
            with the fused kernel if it is built. Files in a precision that ONNX Runtime cannot compute in run
            on the ONNX reference evaluator.
        sparta_modules: number of Sparta modules of the reference model.

    Raises:
        ArtifactError: if an artifact is not a classifier, differs in input shape, labels or number of
            classes, or has no Sparta node though the reference model has Sparta modules.
    """
    runs: list[ArtifactRun] = []
    not_run: dict[str, str] = {}
    for artifact in artifacts:
        try:
            if is_url(str(artifact)):
                opened = [_open_url(str(artifact), settings)]
            else:
                opened = _open_file(bundle, Path(artifact), runtime, settings)
        except NoRuntime as error:
            not_run[_name(bundle, Path(artifact))] = str(error)
            continue
        for run in opened:
            _check_identity(run, bundle, sparta_modules)
        runs += opened
    return runs, not_run


def _name(bundle: Bundle, file: Path) -> str:
    return file.name if file.parent == bundle.path else str(file)


def _open_url(url: str, settings: Verify) -> ArtifactRun:
    note = "the precision of a served model is unknown; the limits for fp32 apply"
    return ArtifactRun(url, open_url(url), settings, notes=(note,))


def _open_file(bundle: Bundle, file: Path, runtime: str, settings: Verify) -> list[ArtifactRun]:
    if file.suffix not in (".onnx", ENGINE) or (runtime == "tensorrt" and file.suffix != ENGINE):
        raise ArtifactError(
            f"{file} cannot be verified on {'any runtime' if runtime == AUTO else runtime}; expected an "
            ".onnx file, or an .engine that `robust-export tensorrt` wrote for --runtime tensorrt"
        )
    if file.suffix == ENGINE:
        opened = [(_open_engine(file, runtime), "")]
    elif runtime in (AUTO, "onnxruntime"):
        opened = _open_onnx(file, runtime)
    else:
        opened = [(open_file(file, runtime), "")]
    name, digest = _name(bundle, file), bundle.digest(file)
    runs = [
        ArtifactRun(name, classifier, settings, file, digest, (note,) if note else ())
        for classifier, note in opened
    ]
    return [_reduce_budgets(run) if run.classifier.runtime == "reference" else run for run in runs]


def _open_engine(file: Path, runtime: str) -> Artifact:
    """Open a TensorRT engine.

    Raises:
        NoRuntime: if this machine lacks the GPU that it needs.
    """
    if runtime not in (AUTO, "tensorrt"):
        raise ArtifactError(f"{file} is an engine, which {runtime} cannot run; leave --runtime out")
    try:
        return open_file(file, "tensorrt")
    except NoGPU as error:
        raise NoRuntime(str(error)) from error


def _open_onnx(file: Path, runtime: str) -> list[tuple[Artifact, str]]:
    """Open an ONNX file on stock ONNX Runtime and fused, else on the reference evaluator; with notes."""
    try:
        stock = OnnxRuntimeClassifier(file, kernel=False, spin=False)  # PyTorch computes in turns with it
    except ArtifactError as error:
        if runtime != AUTO or model_precision(read_model(file)) not in HALF_PRECISIONS.values():
            raise
        if evaluator := _open_reference_evaluator(file):
            return [(evaluator, f"{reason(error)}: judged on the ONNX reference evaluator")]
        raise NoRuntime(reason(error)) from error
    if runtime == AUTO and stock.falls_back_to_fp32 and (evaluator := _open_reference_evaluator(file)):
        why = f"ONNX Runtime has no {stock.precision} arithmetic here and computes in another precision"
        return [(evaluator, f"{why}: judged on the ONNX reference evaluator")]
    opened: list[tuple[Artifact, str]] = [(stock, "")]
    if stock.sparta_nodes and ort_library() is not None:
        fused = OnnxRuntimeClassifier(file, spin=False)
        opened += [(fused, "")] if fused.kernel_file else []
    return opened


def _open_reference_evaluator(file: Path) -> Artifact | None:
    """Open a half-precision file on the ONNX reference evaluator; None for other files."""
    try:
        classifier: Any = open_file(file, "reference")
    except ArtifactError:
        return None
    return classifier if classifier.precision in HALF_PRECISIONS.values() else None


def _reduce_budgets(run: ArtifactRun) -> ArtifactRun:
    """Limit the budgets of the attacks to what the reference evaluator, an interpreter, can compute."""
    budgets = {
        name: min(getattr(run.settings, name), most) for name, most in REFERENCE_EVALUATOR_BUDGETS.items()
    }
    listed = ", ".join(f"{name} {value}" for name, value in budgets.items())
    note = f"the reference evaluator is slow; reduced budgets: {listed}"
    return replace(run, settings=replace(run.settings, **budgets), notes=(*run.notes, note))


def _check_identity(run: ArtifactRun, bundle: Bundle, sparta_modules: int) -> None:
    """Raise ArtifactError if the artifact was not exported from a model like the bundle's."""
    spec, classifier, name = bundle.recipe().model, run.classifier, run.name
    expected = (spec.in_chans, spec.image_size, spec.image_size)
    if classifier.input_shape != expected:
        raise ArtifactError(
            f"{name} takes images {list(classifier.input_shape)}; {bundle.name} takes {list(expected)}"
        )
    if classifier.labels is not None and classifier.labels != bundle.labels:
        raise ArtifactError(
            f"{name} has other labels than {bundle.name}:\n  file:  {', '.join(classifier.labels)}\n"
            f"  model: {', '.join(bundle.labels)}\nExport it again from this bundle."
        )
    if classifier.classes != len(bundle.labels):
        raise ArtifactError(
            f"{name} has {classifier.classes} classes; {bundle.name} has {len(bundle.labels)}"
        )
    if run.file and sparta_modules and not classifier.sparta_nodes:
        raise ArtifactError(
            f"{name} has no ai.sparta::Sparta node, but {bundle.name} is a Sparta network. Export "
            "it with `robust-export onnx`."
        )
