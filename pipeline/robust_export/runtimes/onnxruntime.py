"""An ONNX file as a classifier, run by ONNX Runtime."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from robust_export.classifier import Logits, Pixels
from robust_export.errors import ArtifactError, reason

DOMAIN, OPERATOR = "ai.sparta", "Sparta"


class OnnxRuntimeClassifier:
    """Runs a self-contained ONNX file, a batch at a time.

    Args:
        path: a file with one input, float32 [N, C, H, W], whose first output is the logits [N, K].
        providers: ONNX Runtime's execution providers, in order of preference.
        threads: of one inference; 0 lets ONNX Runtime choose.

    Raises:
        ArtifactError: if the file is no ONNX model, or one of another signature.
    """

    runtime = "onnxruntime"

    def __init__(
        self, path: str | Path, *, providers: Sequence[str] = ("CPUExecutionProvider",),
        batch_size: int = 256, threads: int = 0,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        self.batch_size = batch_size
        self.providers = list(providers)
        self.threads = threads
        graph, self.metadata = _read(self.path)
        nodes = [n for n in graph.node if n.domain == DOMAIN and n.op_type == OPERATOR]
        self.sparta_nodes = len(nodes)
        self.precision = "fp32"
        self._session = self._start(ort.SessionOptions())
        self._check_signature()

    def __call__(self, pixels: Pixels) -> Logits:
        chunks = range(0, len(pixels), self.batch_size)
        outputs = [self._run(pixels[start : start + self.batch_size]) for start in chunks]
        return np.concatenate(outputs)

    @property
    def labels(self) -> list[str] | None:
        """The labels that the file says its logits have, None if it does not say."""
        value = self.metadata.get("robust_export.labels")
        return None if value is None else list(json.loads(value))

    def fused_nodes(self) -> int:
        """Return how many Sparta nodes a kernel ran, by the profile of a session that ran once.

        A node whose function body was inlined is none of them.
        """
        with tempfile.TemporaryDirectory() as folder:
            options = ort.SessionOptions()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = self._start(options)
            session.run(None, {self._input: np.zeros((1, *self.plane), np.float32)})
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        ran = {
            event["args"].get("node_index")
            for event in events
            if event.get("cat") == "Node" and event.get("args", {}).get("op_name") == OPERATOR
        }
        return len(ran)

    def _run(self, pixels: Pixels) -> Logits:
        logits: Logits = self._session.run(None, {self._input: np.ascontiguousarray(pixels)})[0]
        return logits.astype(np.float32, copy=False)

    def _start(self, options: ort.SessionOptions) -> Any:
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        try:
            return ort.InferenceSession(str(self.path), options, providers=self.providers)
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            raise ArtifactError(f"ONNX Runtime cannot load {self.path}: {reason(error)}") from error

    def _check_signature(self) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(shape) != 4:
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs) or "none"
            raise ArtifactError(
                f"{self.path} is no classifier of images: its inputs are {found}; expected one, "
                "float32 [N, C, H, W]"
            )
        if len(outputs[0].shape) != 2:
            raise ArtifactError(
                f"{self.path}: its first output is {outputs[0].shape}; expected logits [N, K]"
            )
        self._input = inputs[0].name
        self.plane = tuple(shape[1:])
        self.classes = outputs[0].shape[1]


def _read(path: Path) -> tuple[onnx.GraphProto, dict[str, str]]:
    try:
        model = onnx.load(path)
    except (OSError, DecodeError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read as an ONNX file: {error}. Make it with `robust-export onnx`."
        ) from error
    if not model.graph.node:
        raise ArtifactError(
            f"{path} is not an ONNX file, or an empty one. Make it with `robust-export onnx`."
        )
    return model.graph, {entry.key: entry.value for entry in model.metadata_props}
