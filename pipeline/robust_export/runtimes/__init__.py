"""What runs an artifact, behind one protocol (`robust_export.classifier`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_export.errors import unknown

if TYPE_CHECKING:
    from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
    from robust_export.runtimes.openvino import OpenVinoClassifier

    ArtifactClassifier = OnnxRuntimeClassifier | OpenVinoClassifier

RUNTIMES = ("onnxruntime", "openvino")


def open_file(path: str | Path, runtime: str = "onnxruntime", **settings: Any) -> ArtifactClassifier:
    """Return an ONNX file as a classifier of the runtime named; `settings` are its own.

    Raises:
        UnknownName: for another runtime.
        ArtifactError: if the runtime is not installed, or refuses the file.
    """
    if runtime == "onnxruntime":
        from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier

        return OnnxRuntimeClassifier(path, **settings)
    if runtime == "openvino":
        from robust_export.runtimes.openvino import OpenVinoClassifier

        return OpenVinoClassifier(path, **settings)
    raise unknown("runtime", runtime, RUNTIMES)
