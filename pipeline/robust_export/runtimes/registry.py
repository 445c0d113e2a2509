"""What runs an artifact, behind one protocol (`robust_export.runtimes.classifier`)."""

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
    """Return a file, ONNX or an engine, as a classifier of the runtime named; `settings` are its own.

    Raises:
        UnknownName: for another runtime.
        ArtifactError: if the runtime is not installed, has no GPU that it needs, or refuses the file.
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
    """Return whether a text is an address, http or https, and no file.

    >>> is_url("http://localhost:8080/v2/models/net"), is_url("model.onnx")
    (True, False)
    """
    return text.lower().startswith(("http://", "https://"))


def open_url(url: str, **settings: Any) -> RemoteClassifier:
    """Return a served model as a classifier; `settings` are those of `RemoteClassifier`.

    Raises:
        InvalidValue: if the address has another form than http(s)://host:port/v2/models/NAME.
        ArtifactError: if the server cannot be reached, or serves no classifier of images there.
    """
    from robust_export.runtimes.remote import RemoteClassifier

    return RemoteClassifier(url, **settings)
