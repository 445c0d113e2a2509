"""Choice of the bundle's file that Triton serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from robust_export.bundle import Bundle
from robust_export.errors import BundleError

Runtime = Literal["tensorrt", "onnx"]
MODEL_FILES: dict[Runtime, str] = {"tensorrt": "model.plan", "onnx": "model.onnx"}  # names in the repository
USE_ONNX = "or serve the ONNX file: --runtime onnx"


@dataclass(frozen=True)
class TritonArtifact:
    """An engine or ONNX file of a bundle, with its entry in the manifest."""

    file: str
    runtime: Runtime
    facts: Mapping[str, Any]

    @property
    def precision(self) -> str:
        return str(self.facts.get("precision", "fp32"))

    @property
    def profile(self) -> tuple[int, int, int]:
        """Smallest, best and largest batch of an engine."""
        profile = self.facts["profile"]
        return int(profile["min"]), int(profile["opt"]), int(profile["max"])

    @property
    def needs_plugin(self) -> bool:
        """Whether the server must load libsparta_trt.so before the file."""
        return self.runtime == "tensorrt" and bool(self.facts.get("plugin_library"))


def choose_artifact(
    bundle: Bundle, runtime: Runtime = "tensorrt", *, precision: str = "fp32", engine: str | None = None,
    capability: str | None = None,
) -> TritonArtifact:  # fmt: skip
    """Return the bundle's file that Triton serves.

    Args:
        engine: file name of the engine; by default the only one of this precision and compute capability.
        capability: compute capability such as "8.9"; None for any.

    Raises:
        BundleError: if no file fits, several engines do, or Triton cannot run the engine.
    """
    if runtime == "onnx":
        return _onnx_file(bundle, precision)
    engines = {name: bundle.manifest["files"][name] for name in bundle.files("engine")}
    if engine is not None:
        if engine not in engines:
            others = f"it has {', '.join(engines)}" if engines else "it has none"
            raise BundleError(f"bundle {bundle.path} has no engine {engine}; {others}")
        return _check_engine(bundle, engine, engines[engine])
    fitting = {
        name: facts for name, facts in engines.items()
        if facts["precision"] == precision and capability in (None, facts["compute_capability"])
    }  # fmt: skip
    usable = [name for name, facts in fitting.items() if facts["flavor"] == "tensorrt"]
    if len(usable) > 1:
        raise BundleError(
            f"bundle {bundle.path} has several engines in {precision}: {', '.join(usable)}; choose one with "
            "--engine FILE or --compute-capability M.N"
        )
    if usable:
        return _check_engine(bundle, usable[0], fitting[usable[0]])
    if fitting:
        return _check_engine(bundle, *next(iter(fitting.items())))
    suffix = f" for compute capability {capability}" if capability else ""
    raise BundleError(
        f"bundle {bundle.path} has no engine in {precision}{suffix}; build it on the GPU's machine with "
        f"`robust-export tensorrt --model {bundle.path} --precision {precision}`, {USE_ONNX}"
    )


def _check_engine(bundle: Bundle, name: str, facts: Mapping[str, Any]) -> TritonArtifact:
    """Return an engine; raise BundleError if Triton cannot run it or it does not take a single image."""
    if facts["flavor"] != "tensorrt":
        raise BundleError(
            f"{bundle.path / name} is an engine of TensorRT for RTX, which Triton has no backend for; build "
            "one with `robust-export tensorrt --flavor tensorrt` on the GPU's machine, "
            f"{USE_ONNX}"
        )
    artifact = TritonArtifact(name, "tensorrt", facts)
    if artifact.profile[0] > 1:
        raise BundleError(
            f"{bundle.path / name} takes batches of at least {artifact.profile[0]} images, but requests may "
            f"have one; build it with `robust-export tensorrt --batch 1,...`, {USE_ONNX}"
        )
    return artifact


def _onnx_file(bundle: Bundle, precision: str) -> TritonArtifact:
    for name in bundle.files("onnx"):
        artifact = TritonArtifact(name, "onnx", bundle.manifest["files"][name])
        if artifact.precision == precision:
            return artifact
    raise BundleError(
        f"bundle {bundle.path} has no ONNX file in {precision}; write it with "
        f"`robust-export onnx --model {bundle.path} --precision {precision}`"
    )
