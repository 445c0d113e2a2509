"""An ONNX file as a classifier, run by OpenVINO (the extra `openvino`).

OpenVINO's reader refuses model-local functions, so Sparta's function body is inlined first. Its graph
compiler then keeps the depthwise convolution, the sigmoid and the products in its blocked layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner

from robust_export.errors import ArtifactError, reason
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.onnx_model import model_precision, read_model, read_signature, sparta_nodes


class OpenVinoClassifier:
    """Run a self-contained ONNX file on the CPU in float32, in batches.

    Args:
        path: a file with one input, float32 [N, C, H, W], and the logits [N, K] as first output.
        threads: per inference; 0 lets OpenVINO choose.

    Raises:
        ArtifactError: if OpenVINO is not installed or refuses the file, or the file is not a classifier.
    """

    runtime = "openvino"

    def __init__(self, path: str | Path, *, batch_size: int = 256, threads: int = 0) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ArtifactError(
                "the runtime is openvino, but OpenVINO is not installed: pip install "
                "'robust-export[openvino]'"
            ) from error
        self.path, self.batch_size = Path(path), batch_size
        model = read_model(self.path)
        signature = read_signature(model, self.path)
        self.input_shape, self.classes, self.labels = signature.shape, signature.classes, signature.labels
        self.precision = model_precision(
            model
        )  # the file's criteria apply, though OpenVINO computes in float32
        self.sparta_nodes = len(sparta_nodes(model))
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            inlined = onnx.inliner.inline_local_functions(model)
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(inlined.SerializeToString()), "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError and types of its own
            raise ArtifactError(f"OpenVINO cannot load {self.path}: {reason(error)}") from error
        self._request = compiled.create_infer_request()

    def __call__(self, pixels: Pixels) -> Logits:
        starts = range(0, len(pixels), self.batch_size)
        return np.concatenate([self._run(pixels[start : start + self.batch_size]) for start in starts])

    def fused_nodes(self) -> int:
        """Return 0: OpenVINO runs the function body."""
        return 0

    def _run(self, pixels: Pixels) -> Logits:
        result = self._request.infer({0: np.ascontiguousarray(pixels)})
        logits: Logits = np.array(result[0], np.float32)  # a copy: the request owns its outputs
        return logits
