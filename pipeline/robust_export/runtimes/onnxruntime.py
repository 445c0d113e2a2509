"""An ONNX file as a classifier, run by ONNX Runtime."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from robust_export.errors import ArtifactError, BuildError, reason
from robust_export.kernels.libraries import ort_library, why_no_library
from robust_export.kernels.paths import HOW, KERNEL_SIZES
from robust_export.kernels.status import ort_has_cuda
from robust_export.nn.operator import DOMAIN, OPERATOR
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.onnx_model import (
    FeatureMaps,
    precision_of,
    ran_in,
    read_model,
    sparta_nodes,
    with_activations,
)
from robust_export.runtimes.ort_blocked import BLOCKED, blocked_session
from robust_export.runtimes.ort_gpu import PROVIDERS, Provider, prepare, start

CPU = "CPUExecutionProvider"
NO_KERNEL = "Could not find an implementation"  # ONNX Runtime's words for a format that it cannot compute in


class OnnxRuntimeClassifier:
    """Runs a self-contained ONNX file, a batch at a time.

    Args:
        path: a file with one input, float32 [N, C, H, W], whose first output is the logits [N, K].
        runtime: "onnxruntime", on the CPU, or one of `providers.PROVIDERS`, wholly on the GPU.
        threads: of one inference; 0 lets ONNX Runtime choose.
        kernel: run Sparta with the fused kernel where it is built; False, or where it is not, runs the file's
            own function body, as a stock ONNX Runtime does.
        spin: let threads that wait for work keep their cores busy. False where something else computes in
            turns with it, such as PyTorch: both are then two to three times as fast.

    Raises:
        ArtifactError: if the file is no ONNX model, or one of another signature.
        BuildError: if there is a kernel, but ONNX Runtime cannot load it.
    """

    def __init__(
        self, path: str | Path, *, runtime: str = "onnxruntime", batch_size: int = 256, threads: int = 0,
        kernel: bool = True, spin: bool = True,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        self.batch_size = batch_size
        self.runtime = runtime
        self.provider = PROVIDERS.get(runtime)
        self.threads = threads
        self.spin = spin
        model = read_model(self.path)
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        self.precision = precision_of(model)
        self.sparta_nodes = len(sparta_nodes(model))
        self._misfit = _without_kernel(model) or _without_gpu_kernel(self.provider)
        self.kernel_file = ort_library() if kernel and self.sparta_nodes and not self._misfit else None
        self._session = self._start(model)
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

    def why_stock(self) -> str:
        """Return, in one line, why no fused kernel runs the file, or nothing where one does."""
        return "" if self.kernel_file is not None else self._misfit or why_no_library()

    def fused_nodes(self) -> int:
        """Return how many Sparta nodes a kernel ran, by the profile of a session that ran once.

        A node whose function body was inlined is none of them.
        """
        if self.provider and self.provider.plugin:
            return self.sparta_nodes  # inside TensorRT's engine; without its plugin there was no session
        events = self.profile(np.zeros((1, *self.plane), np.float32))
        fused = [event["args"] for event in events if event["args"]["op_name"] in (OPERATOR, BLOCKED)]
        return len({args["node_index"] for args in fused})

    @functools.cached_property
    def falls_back(self) -> bool:
        """Whether no matrix product runs in the file's precision, by the profile of a session that ran once.

        On a CPU, ONNX Runtime has no kernels for half precision: it casts such a file to float32 and rounds
        nowhere, so that its numbers say little of the same file on hardware that has them.
        """
        if self.precision == "fp32":
            return False
        return not ran_in(self.precision, self.profile(np.zeros((1, *self.plane), np.float32)))

    def activations(self, pixels: Pixels) -> list[FeatureMaps]:
        """Return what every activation gives for `pixels`, float32 [N, C, H, W] each, in graph order.

        Activations are the Sparta nodes, or ReLU's in a file without; they run as in the classifier itself.
        """
        model, names = with_activations(read_model(self.path))
        planes = self._start(model).run(names, {self._input: pixels})
        return [plane.astype(np.float32, copy=False) for plane in planes]

    def profile(self, pixels: Pixels, runs: int = 1) -> list[dict[str, Any]]:
        """Return ONNX Runtime's own record of every operator that ran, from a session of its own.

        An event's `dur` is in microseconds, its `args` name the operator (`op_name`) and the node.
        """
        with tempfile.TemporaryDirectory() as folder:
            session = self._start(read_model(self.path), profile=Path(folder) / "profile")
            for _ in range(runs):
                session.run(None, {self._input: pixels})
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        return [
            event for event in events if event.get("cat") == "Node" and "op_name" in event.get("args", {})
        ]

    def _run(self, pixels: Pixels) -> Logits:
        logits: Logits = self._session.run(None, {self._input: np.ascontiguousarray(pixels)})[0]
        return logits.astype(np.float32, copy=False)

    def _start(self, model: onnx.ModelProto, profile: Path | None = None) -> Any:
        """Start a session: in the blocked layout where that can be had, as the file is elsewhere."""
        session = None
        if self.kernel_file is not None and self.provider is None:
            session = blocked_session(model, lambda: self._options(profile), [CPU])
        if session is not None:
            return session
        options = self._options(profile)
        try:
            if self.provider:
                given = prepare(model, self.provider)
                return start(given.SerializeToString(), options, self.provider, str(self.path))
            return ort.InferenceSession(model.SerializeToString(), options, providers=[CPU])
        except ArtifactError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            where = self.provider.name if self.provider else CPU
            if NO_KERNEL in str(error) and self.precision in ("fp16", "bf16"):
                raise ArtifactError(
                    f"ONNX Runtime's {where} has no {self.precision} arithmetic for {self.path}: "
                    f"{reason(error)}. Use a device that has it, or the slow --runtime reference."
                ) from error
            raise ArtifactError(f"ONNX Runtime cannot load {self.path}: {reason(error)}") from error

    def _options(self, profile: Path | None) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        if not self.spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if self.kernel_file is not None:
            try:
                options.register_custom_ops_library(str(self.kernel_file))
            except Exception as error:
                raise BuildError(
                    f"ONNX Runtime cannot load the kernel {self.kernel_file}: {reason(error)}\n"
                    f"To replace it, {HOW} --force; to go without, set ROBUST_EXPORT_ORT_LIBRARY to nothing."
                ) from error
        return options

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


def _without_kernel(model: onnx.ModelProto) -> str:
    """Return why the fused kernel cannot run this model, nothing if it can."""
    shapes = {i.name: list(i.dims) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.domain != DOMAIN or node.op_type != OPERATOR or len(node.input) != 3:
            continue
        shape = shapes.get(node.input[1])
        if shape is not None and shape[1:] not in [[1, k, k] for k in KERNEL_SIZES]:
            sizes = ", ".join(map(str, KERNEL_SIZES))
            return (
                f"no fused kernel: the weight of {node.name} is {shape}; the kernel's are [C, 1, k, k] with "
                f"k = {sizes}"
            )
    return ""


def _without_gpu_kernel(provider: Provider | None) -> str:
    """Return why no kernel of ours runs on a provider, nothing if one does, or it is none for GPUs."""
    if provider is None:
        return ""
    if not provider.kernel:
        return f"no fused kernel: ONNX Runtime has none of ours for its {provider.name}"
    if not ort_has_cuda():
        return f"no fused kernel: the library was built without the one for {provider.name}; {HOW}"
    return ""
