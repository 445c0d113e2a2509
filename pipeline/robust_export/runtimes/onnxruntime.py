"""An ONNX file as a classifier, run by ONNX Runtime."""

from __future__ import annotations

import functools
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from robust_export.errors import ArtifactError, BuildError, reason
from robust_export.kernels.libraries import ort_has_cuda, ort_library, why_no_ort_library
from robust_export.kernels.paths import BUILD_HINT, KERNEL_SIZES
from robust_export.nn.onnx_operator import OPERATOR
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.onnx_model import (
    FeatureMaps,
    expose_activations,
    model_precision,
    ran_in_precision,
    read_model,
    read_signature,
    sparta_nodes,
)
from robust_export.runtimes.ort_blocked import BLOCKED, BlockedLayoutError, blocked_session
from robust_export.runtimes.ort_gpu import PROVIDERS, Provider, create_session, rewrite_for_provider

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
NO_IMPLEMENTATION = "Could not find an implementation"  # ONNX Runtime's message for an unsupported type


class OnnxRuntimeClassifier:
    """Run a self-contained ONNX file, in batches.

    Args:
        path: a file with one input, float32 [N, C, H, W], and the logits [N, K] as first output.
        runtime: "onnxruntime" for the CPU, or a key of `ort_gpu.PROVIDERS` for the GPU alone.
        threads: per inference; 0 lets ONNX Runtime choose.
        kernel: run Sparta with the fused kernel where it is built. Otherwise the file's function body runs,
            as in a stock ONNX Runtime.
        spin: let idle threads busy-wait. Pass False where ONNX Runtime takes turns with another library that
            computes, such as PyTorch: both are then two to three times as fast.

    Raises:
        ArtifactError: if the file is not an ONNX file, or has another signature.
        BuildError: if there is a kernel library, but ONNX Runtime cannot load it.
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
        signature = read_signature(model, self.path)
        self._input = signature.input
        self.input_shape, self.classes, self.labels = signature.shape, signature.classes, signature.labels
        self.precision = model_precision(model)
        self.sparta_nodes = len(sparta_nodes(model))
        self._why_no_kernel = _unsupported_weight(model) or _unsupported_provider(self.provider)
        self.kernel_file = ort_library() if kernel and self.sparta_nodes and not self._why_no_kernel else None
        self._session = self._create_session(model)

    def __call__(self, pixels: Pixels) -> Logits:
        starts = range(0, len(pixels), self.batch_size)
        return np.concatenate([self._run(pixels[start : start + self.batch_size]) for start in starts])

    def why_not_fused(self) -> str:
        """Return, in one line, why no fused kernel runs the file; "" if one does."""
        return "" if self.kernel_file is not None else self._why_no_kernel or why_no_ort_library()

    def fused_nodes(self) -> int:
        """Return how many Sparta nodes a kernel ran, counted in the profile of one inference.

        A node whose function body ran instead does not count.
        """
        if self.provider and self.provider.plugin:
            return self.sparta_nodes  # TensorRT's engine holds them; without the plugin no session starts
        arguments = [event["args"] for event in self._profile_one_image()]
        return len({args["node_index"] for args in arguments if args["op_name"] in (OPERATOR, BLOCKED)})

    @functools.cached_property
    def falls_back_to_fp32(self) -> bool:
        """Whether no matrix product ran in the file's precision, by the profile of one inference.

        ONNX Runtime has no half-precision kernels on most CPUs: it casts such a file to float32 and rounds
        nowhere, so its logits say little about hardware that computes in half precision.
        """
        if self.precision == "fp32":
            return False
        return not ran_in_precision(self.precision, self._profile_one_image())

    def activations(self, pixels: Pixels) -> list[FeatureMaps]:
        """Return the feature maps after every activation, float32 [N, C, H, W] each, in graph order.

        Activations are the Sparta nodes, or the Relu nodes of a file without Sparta. They run with the same
        kernel and provider as the classifier itself.
        """
        model, names = expose_activations(read_model(self.path))
        feature_maps = self._create_session(model).run(names, {self._input: pixels})
        return [each.astype(np.float32, copy=False) for each in feature_maps]

    def profile(self, pixels: Pixels, runs: int = 1) -> list[dict[str, Any]]:
        """Return ONNX Runtime's events of every operator that ran, from a session of its own.

        An event's `dur` is in microseconds; its `args` hold the operator (`op_name`) and the node.
        """
        with tempfile.TemporaryDirectory() as folder:
            session = self._create_session(read_model(self.path), profile=Path(folder) / "profile")
            for _ in range(runs):
                session.run(None, {self._input: pixels})
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        return [
            event for event in events if event.get("cat") == "Node" and "op_name" in event.get("args", {})
        ]

    def _profile_one_image(self) -> list[dict[str, Any]]:
        return self.profile(np.zeros((1, *self.input_shape), np.float32))

    def _run(self, pixels: Pixels) -> Logits:
        logits: Logits = self._session.run(None, {self._input: np.ascontiguousarray(pixels)})[0]
        return logits.astype(np.float32, copy=False)

    def _create_session(self, model: onnx.ModelProto, profile: Path | None = None) -> Any:
        """Return a session; with the CPU kernel, in the blocked layout if ONNX Runtime uses it."""
        if self.kernel_file is None or self.provider is not None:
            return self._create_plain_session(model, profile)
        try:
            session = blocked_session(model, lambda: self._options(profile), [CPU])
        except BlockedLayoutError as error:
            session = self._create_plain_session(model, profile)  # raises if the file is the cause
            _warn_once(f"{self.path} runs slower, not in ONNX Runtime's blocked layout: {error}")
        return self._create_plain_session(model, profile) if session is None else session

    def _create_plain_session(self, model: onnx.ModelProto, profile: Path | None) -> Any:
        """Return a session on the model itself, or on its rewritten form for a GPU provider."""
        options = self._options(profile)
        try:
            if self.provider:
                rewritten = rewrite_for_provider(model, self.provider)
                return create_session(
                    rewritten.SerializeToString(), options, self.provider, file=str(self.path)
                )
            return ort.InferenceSession(model.SerializeToString(), options, providers=[CPU])
        except ArtifactError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            where = self.provider.name if self.provider else CPU
            if NO_IMPLEMENTATION in str(error) and self.precision in ("fp16", "bf16"):
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
                    f"To replace it, {BUILD_HINT} --force. To run without it, set ROBUST_EXPORT_ORT_LIBRARY "
                    "to an empty string."
                ) from error
        return options


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning that this process has not logged before."""
    log.warning(message)


def _unsupported_weight(model: onnx.ModelProto) -> str:
    """Return why the fused kernel cannot run this model's weights; "" if it can."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in sparta_nodes(model):
        shape = shapes.get(node.input[1]) if len(node.input) == 3 else None
        if shape is not None and shape[1:] not in [[1, k, k] for k in KERNEL_SIZES]:
            sizes = ", ".join(map(str, KERNEL_SIZES))
            return (
                f"no fused kernel: the weight of {node.name} is {shape}; the kernel takes [C, 1, k, k] with "
                f"k = {sizes}"
            )
    return ""


def _unsupported_provider(provider: Provider | None) -> str:
    """Return why no fused kernel runs on a GPU provider; "" if one does, or `provider` is None (the CPU)."""
    if provider is None:
        return ""
    if not provider.kernel:
        return f"no fused kernel: there is none for ONNX Runtime's {provider.name}"
    if not ort_has_cuda():
        return f"no fused kernel: the library was built without CUDA, for {provider.name}; {BUILD_HINT}"
    return ""
