"""Loading bundles for serving: choose the file, open it, check it against the manifest."""

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
from robust_export.serving.ui.examples_file import read_examples

TENSORRT = "tensorrt"  # the runtime of engine files (model.sm89.engine)
PLATFORMS = {"onnxruntime": "onnxruntime_onnx", TENSORRT: "tensorrt_plan"}  # Triton's platform names


@dataclass(frozen=True)
class LoadedModel:
    """An opened classifier and its metadata."""

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
        """Return what the command line prints about the model."""
        classifier = self.classifier
        return {
            "name": self.name, "file": self.file, "runtime": self.runtime, "precision": classifier.precision,
            "sparta_nodes": classifier.sparta_nodes, "fused_nodes": classifier.fused_nodes(),
        }  # fmt: skip


def load_models(settings: Settings) -> dict[str, LoadedModel]:
    """Load the models by name and run each once.

    Raises:
        BundleError: if a bundle is missing, was altered, or lacks the file to serve.
        ArtifactError: if the runtime cannot open the file, or the file does not match the manifest.
        InvalidValue: if two bundles have the same name, or a name cannot be part of a URL.
    """
    models: dict[str, LoadedModel] = {}
    for name_or_path in settings.models:
        model = load_model(Bundle.open(name_or_path), settings)
        if not re.fullmatch(r"[^\s/?#@\\%]+", model.name):
            raise InvalidValue(
                f"bundle {name_or_path} is named {model.name!r}; expected no spaces and / ? # @ \\ %"
            )
        if model.name in models:
            raise InvalidValue(f"two bundles are named {model.name}; serve them from two servers")
        models[model.name] = model
    return models


def load_model(bundle: Bundle, settings: Settings) -> LoadedModel:
    """Open the bundle's file, check it against the manifest, and run it once."""
    file, runtime = choose_file(bundle, settings.runtime, settings.precision)
    path = bundle.path / file
    classifier = open_file(path, runtime, **_runtime_options(runtime, settings))
    channels, height, width = classifier.input_shape
    labels = bundle.labels
    if classifier.classes != len(labels) or classifier.labels not in (None, labels):
        raise ArtifactError(
            f"{path} has {classifier.classes} classes, the manifest {len(labels)} labels, or their names "
            "differ; export the file again with `robust-export onnx`"
        )
    if height != width:
        raise ArtifactError(f"{path} takes images of {height} x {width} pixels; expected square images")
    classifier(np.zeros((1, channels, height, width), np.float32))
    input_shape = (channels, height, width)
    examples = read_examples(bundle, input_shape)
    return LoadedModel(bundle.name, classifier, input_shape, labels, file, runtime, examples)


def choose_file(bundle: Bundle, runtime: str, precision: str) -> tuple[str, str]:
    """Return the file of the bundle to serve and the runtime that opens it.

    "auto" takes a TensorRT engine built for this machine's GPU if the bundle has one, else ONNX Runtime.

    Raises:
        BundleError: if the bundle has no such file.
    """
    if runtime in ("auto", TENSORRT):
        engine = _find_engine(bundle, precision)
        if engine is not None:
            return engine, TENSORRT
        if runtime == TENSORRT:
            raise BundleError(f"bundle {bundle.path} has no TensorRT engine for this machine's GPU")
        runtime = "onnxruntime"
    file = ONNX_FILES[precision]
    if file not in bundle.files("onnx"):
        raise BundleError(
            f"bundle {bundle.path} has no {file}; make it with `robust-export onnx --model {bundle.path} "
            f"--precision {precision}`"
        )
    return file, runtime


def _find_engine(bundle: Bundle, precision: str) -> str | None:
    """Return the bundle's engine of this precision for this machine's GPU, or None."""
    for name in bundle.files("engine"):
        facts = bundle.manifest["files"][name]
        try:
            fits = facts["precision"] == precision and not gpu_mismatch(facts)
        except ArtifactError:  # without cuda-bindings the GPU is unknown
            fits = False
        if fits:
            return name
    return None


def _runtime_options(runtime: str, settings: Settings) -> dict[str, Any]:
    if runtime == "onnxruntime":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = settings.threads or max(1, cores // settings.workers)
        return {"batch_size": settings.max_batch, "threads": threads, "spin": False}
    return {"batch_size": settings.max_batch} if runtime != TENSORRT else {}
