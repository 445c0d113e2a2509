"""From bundles to what is served: the file that is chosen, what runs it, and what it takes and gives."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from robust_export.bundle import ONNX_FILES, Bundle
from robust_export.errors import ArtifactError, BundleError, InvalidValue
from robust_export.runtimes.classifier import Artifact
from robust_export.runtimes.registry import open_file
from robust_export.runtimes.tensorrt.classifier import gpu_mismatch
from robust_export.serving.settings import Settings
from robust_export.serving.ui.examples_file import read

ENGINE = "tensorrt"  # the runtime that runs a bundle's engines, model.sm89.engine and so on
PLATFORMS = {"onnxruntime": "onnxruntime_onnx", ENGINE: "tensorrt_plan"}  # Triton's words for them


@dataclass(frozen=True)
class Model:
    """A classifier that is ready to answer, and what clients may know of it."""

    name: str
    classifier: Artifact
    input_shape: tuple[int, int, int]  # C, H, W
    labels: list[str]  # K
    file: str
    runtime: str
    examples: bytes | None = None  # the bundle's examples.json, for the page at /

    @property
    def classes(self) -> int:
        return len(self.labels)

    def facts(self) -> dict[str, Any]:
        """Return what the command line prints of it."""
        classifier = self.classifier
        return {
            "name": self.name, "file": self.file, "runtime": self.runtime, "precision": classifier.precision,
            "sparta_nodes": classifier.sparta_nodes, "fused_nodes": classifier.fused_nodes(),
        }  # fmt: skip


def load_models(settings: Settings) -> dict[str, Model]:
    """Return the models to serve by name, each of which has answered once.

    Raises:
        BundleError: if a bundle is missing or was altered, or has no file to serve.
        ArtifactError: if its runtime refuses the file, or the file is not what the manifest says.
        InvalidValue: if two bundles have one name, or one has a name that no address can hold.
    """
    models: dict[str, Model] = {}
    for place in settings.models:
        model = load_model(Bundle.open(place), settings)
        if not re.fullmatch(r"[^\s/?#@\\%]+", model.name):
            raise InvalidValue(f"the bundle {place} is named {model.name!r}, which no address can hold")
        if model.name in models:
            raise InvalidValue(f"two bundles are named {model.name}; a server has one of a name")
        models[model.name] = model
    return models


def load_model(bundle: Bundle, settings: Settings) -> Model:
    """Open the bundle's file, check it against the manifest, and have it answer once."""
    file, runtime = choose(bundle, settings.runtime, settings.precision)
    classifier = open_file(bundle.path / file, runtime, **_options(runtime, settings))
    channels, height, width = classifier.input_shape
    labels = bundle.labels
    if classifier.classes != len(labels) or classifier.labels not in (None, labels):
        raise ArtifactError(
            f"{bundle.path / file} and the bundle's manifest differ on the labels: it has "
            f"{classifier.classes} classes, the manifest {len(labels)} labels. Export it again with "
            "`robust-export onnx`."
        )
    if height != width:
        raise ArtifactError(f"{bundle.path / file} takes images of {height} x {width}; expected square ones")
    classifier(np.zeros((1, channels, height, width), np.float32))
    plane = (channels, height, width)
    return Model(bundle.name, classifier, plane, labels, file, runtime, read(bundle, plane))


def choose(bundle: Bundle, runtime: str, precision: str) -> tuple[str, str]:
    """Return the file of the bundle to serve, and the runtime for it.

    "auto" takes an engine for the GPU of this machine where the bundle has one, ONNX Runtime otherwise.

    Raises:
        BundleError: if the bundle has no such file.
    """
    if runtime in ("auto", ENGINE):
        engine = _engine(bundle, precision)
        if engine is not None:
            return engine, ENGINE
        if runtime == ENGINE:
            raise BundleError(f"bundle {bundle.path} has no TensorRT engine for this machine's GPU")
        runtime = "onnxruntime"
    file = ONNX_FILES[precision]
    if file not in bundle.files("onnx"):
        raise BundleError(
            f"bundle {bundle.path} has no {file}; make it with `robust-export onnx --model {bundle.path} "
            f"--precision {precision}`"
        )
    return file, runtime


def _engine(bundle: Bundle, precision: str) -> str | None:
    """Return the bundle's engine of the precision for the GPU that is here, None where there is none."""
    for name in bundle.files("engine"):
        facts = bundle.manifest["files"][name]
        try:
            fits = facts["precision"] == precision and not gpu_mismatch(facts)
        except ArtifactError:  # nobody can tell whether there is a GPU
            fits = False
        if fits:
            return name
    return None


def _options(runtime: str, settings: Settings) -> dict[str, Any]:
    if runtime == "onnxruntime":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = settings.threads or max(1, cores // settings.workers)
        return {"batch_size": settings.max_batch, "threads": threads, "spin": False}
    return {"batch_size": settings.max_batch} if runtime != ENGINE else {}
