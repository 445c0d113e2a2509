"""An ONNX file as a classifier, run by OpenVINO (the extra `openvino`).

OpenVINO's reader refuses model-local functions, so the function body is inlined first; its own graph compiler
then keeps the depthwise convolution, the sigmoid and the products in its blocked layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner

from robust_export.errors import ArtifactError, reason
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier


class OpenVinoClassifier:
    """Runs a self-contained ONNX file on the CPU in float32, a batch at a time.

    Args:
        path: a file with one input, float32 [N, C, H, W], whose first output is the logits [N, K].
        threads: of one inference; 0 lets OpenVINO choose.

    Raises:
        ArtifactError: if OpenVINO is not installed or refuses the file, or the file is no classifier.
    """

    runtime = "openvino"

    def __init__(self, path: str | Path, *, batch_size: int = 256, threads: int = 0) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ArtifactError(
                "the openvino runtime was asked for, but OpenVINO is not installed: pip install "
                "'robust-export[openvino]'"
            ) from error
        file = OnnxRuntimeClassifier(path, kernel=False)  # which says what is wrong with a file
        self.path, self.batch_size = file.path, batch_size
        self.precision = file.precision  # whose gates hold, whatever OpenVINO makes of it
        self.labels, self.plane, self.classes = file.labels, file.plane, file.classes
        self.sparta_nodes = file.sparta_nodes
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = onnx.inliner.inline_local_functions(onnx.load(self.path))
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError and its own kinds
            raise ArtifactError(f"OpenVINO cannot load {self.path}: {reason(error)}") from error
        self._request = compiled.create_infer_request()

    def __call__(self, pixels: Pixels) -> Logits:
        chunks = range(0, len(pixels), self.batch_size)
        outputs = [self._run(pixels[start : start + self.batch_size]) for start in chunks]
        return np.concatenate(outputs)

    def fused_nodes(self) -> int:
        """Return 0: OpenVINO runs no kernel of ours."""
        return 0

    def _run(self, pixels: Pixels) -> Logits:
        result = self._request.infer({0: np.ascontiguousarray(pixels)})
        logits: Logits = np.array(result[0], np.float32)  # a copy: the request owns its outputs
        return logits
