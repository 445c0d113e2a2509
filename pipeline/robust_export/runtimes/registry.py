"""Open an artifact, a file or a served model, as a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_export.errors import unknown

if TYPE_CHECKING:
    from robust_export.runtimes.classifier import Artifact
    from robust_export.runtimes.remote import RemoteClassifier

ONNX_RUNTIMES = (
    "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx", "openvino", "reference",
)  # fmt: skip
RUNTIMES = (*ONNX_RUNTIMES, "tensorrt")


def open_file(path: str | Path, runtime: str = "onnxruntime", **settings: Any) -> Artifact:
    """Open an ONNX file or a TensorRT engine with a runtime.

    Args:
        runtime: one of `RUNTIMES`.
        settings: keyword arguments of the runtime's classifier class.

    Raises:
        UnknownName: for a runtime that is not in `RUNTIMES`.
        ArtifactError: if the runtime is not installed, lacks the GPU it needs, or refuses the file.
    """
    if runtime.startswith("onnxruntime") and runtime in RUNTIMES:
        from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier

        return OnnxRuntimeClassifier(path, runtime=runtime, **settings)
    if runtime == "tensorrt":
        from robust_export.runtimes.tensorrt.classifier import TensorRTClassifier

        return TensorRTClassifier(path, **settings)
    if runtime == "openvino":
        from robust_export.runtimes.openvino import OpenVinoClassifier

        return OpenVinoClassifier(path, **settings)
    if runtime == "reference":
        from robust_export.runtimes.onnx_reference import ReferenceClassifier

        return ReferenceClassifier(path, **settings)
    raise unknown("runtime", runtime, RUNTIMES)


def is_url(text: str) -> bool:
    """Return whether a text is an http or https address.

    >>> is_url("http://localhost:8080/v2/models/net"), is_url("model.onnx")
    (True, False)
    """
    return text.lower().startswith(("http://", "https://"))


def open_url(url: str, **settings: Any) -> RemoteClassifier:
    """Open a served model.

    Args:
        url: http(s)://host:port/v2/models/NAME.
        settings: keyword arguments of `RemoteClassifier`.

    Raises:
        InvalidValue: if the address has another form.
        ArtifactError: if the server cannot be reached, or the model is not an image classifier.
    """
    from robust_export.runtimes.remote import RemoteClassifier

    return RemoteClassifier(url, **settings)
