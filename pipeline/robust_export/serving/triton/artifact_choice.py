"""Which file of a bundle Triton is to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from robust_export.bundle import Bundle
from robust_export.errors import BundleError

Runtime = Literal["tensorrt", "onnx"]
MODEL_FILES: dict[Runtime, str] = {"tensorrt": "model.plan", "onnx": "model.onnx"}  # Triton's names for them
USE_ONNX = "or serve the ONNX file: --runtime onnx"


@dataclass(frozen=True)
class Chosen:
    """A file of a bundle, and what its manifest says of it."""

    file: str
    runtime: Runtime
    facts: Mapping[str, Any]

    @property
    def precision(self) -> str:
        return str(self.facts.get("precision", "fp32"))

    @property
    def profile(self) -> tuple[int, int, int]:
        """Return the least, best and largest number of images that an engine takes."""
        profile = self.facts["profile"]
        return int(profile["min"]), int(profile["opt"]), int(profile["max"])

    @property
    def needs_plugin(self) -> bool:
        """Return whether the server must load libsparta_trt.so before it loads the file."""
        return self.runtime == "tensorrt" and bool(self.facts.get("plugin_library"))


def choose(
    bundle: Bundle, runtime: Runtime = "tensorrt", *, precision: str = "fp32", engine: str | None = None,
    capability: str | None = None,
) -> Chosen:  # fmt: skip
    """Return the file of a bundle that Triton is to run.

    Args:
        engine: the engine by name; otherwise the only one of the precision, and of the compute capability
            ("8.9") where one is given.

    Raises:
        BundleError: if the bundle has none, or several, or none that Triton runs.
    """
    if runtime == "onnx":
        return _onnx(bundle, precision)
    engines = {name: bundle.manifest["files"][name] for name in bundle.files("engine")}
    if engine is not None:
        if engine not in engines:
            have = f"it has {', '.join(engines)}" if engines else "it has none"
            raise BundleError(f"bundle {bundle.path} has no engine {engine}; {have}")
        return _usable(bundle, engine, engines[engine])
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
        return _usable(bundle, usable[0], fitting[usable[0]])
    if fitting:
        return _usable(bundle, *next(iter(fitting.items())))
    which = f" for compute capability {capability}" if capability else ""
    raise BundleError(
        f"bundle {bundle.path} has no engine in {precision}{which}; build it on the GPU's machine with "
        f"`robust-export tensorrt --model {bundle.path} --precision {precision}`, {USE_ONNX}"
    )


def _usable(bundle: Bundle, name: str, facts: Mapping[str, Any]) -> Chosen:
    """Return an engine that Triton can run and that takes a single image."""
    if facts["flavor"] != "tensorrt":
        raise BundleError(
            f"{bundle.path / name} is an engine of TensorRT for RTX, which Triton has no backend for; build "
            "one of TensorRT with `robust-export tensorrt --flavor tensorrt` on the GPU's machine, "
            f"{USE_ONNX}"
        )
    chosen = Chosen(name, "tensorrt", facts)
    if chosen.profile[0] > 1:
        raise BundleError(
            f"{bundle.path / name} takes {chosen.profile[0]} images or more, and a server must answer a "
            f"single one; build it with `robust-export tensorrt --batch 1,...`, {USE_ONNX}"
        )
    return chosen


def _onnx(bundle: Bundle, precision: str) -> Chosen:
    for name in bundle.files("onnx"):
        chosen = Chosen(name, "onnx", bundle.manifest["files"][name])
        if chosen.precision == precision:
            return chosen
    raise BundleError(
        f"bundle {bundle.path} has no ONNX file in {precision}; write it with "
        f"`robust-export onnx --model {bundle.path} --precision {precision}`"
    )
