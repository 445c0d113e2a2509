"""An engine of TensorRT, or of TensorRT for RTX, as a classifier, without torch.

Tested against replacements of TensorRT and CUDA on the CPU; not run on hardware.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robust_export.bundle import MANIFEST, Bundle
from robust_export.errors import ArtifactError
from robust_export.kernels.libraries import trt_library, why_no_trt_library
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.tensorrt.cuda import CudaStream
from robust_export.runtimes.tensorrt.engine import count_plugins, deserialise, engine_layers
from robust_export.runtimes.tensorrt.gpu_info import gpu_capability
from robust_export.runtimes.tensorrt.plugins import load_plugins
from robust_export.runtimes.tensorrt.variants import Variant, load_variant

MAX_PREPARED = 8  # batch sizes kept ready, each with an execution context and a graph


class NoGPU(ArtifactError):
    """No GPU of this machine can run the engine."""


@dataclass
class PreparedBatch:
    """The execution context of a batch size and its CUDA graph, None if it cannot be captured."""

    context: Any
    graph: Any | None


class TensorRTClassifier:
    """Run an engine of a bundle on this machine's GPU, in batches.

    Batches beyond the engine's largest are split, those below its smallest are padded with black images.
    Memory is allocated once, for the largest batch. Each batch size is captured as a CUDA graph when it first
    occurs and replayed afterwards.

    Args:
        path: an engine in its bundle.
        facts: the engine's entry of the manifest, for an engine outside a bundle.
        graphs: use CUDA graphs.
        cuda: a replacement of the CUDA stream in tests.

    Raises:
        NoGPU: if this machine has no GPU, or one of another compute capability.
        ArtifactError: if TensorRT or the plugin is missing or has another version, or the file is not an
            engine of a classifier.
    """

    def __init__(
        self, path: str | Path, *, facts: Mapping[str, Any] | None = None, graphs: bool = True,
        cuda: CudaStream | None = None,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        self.labels: list[str] | None = None
        if facts is None:
            bundle, facts = read_manifest_entry(self.path)
            self.labels = bundle.labels
        self.precision, self.sparta_nodes = str(facts["precision"]), int(facts["sparta_nodes"])
        self.runtime = "tensorrt" if facts["flavor"] == "tensorrt" else "tensorrt-rtx"
        if mismatch := gpu_mismatch(facts):
            raise NoGPU(f"{self.path} cannot run: {mismatch}. Build one with `robust-export tensorrt`")
        variant = self._variant = load_variant(facts["flavor"])
        compatible = facts["options"]["version_compatible"]
        if facts["tensorrt"] != variant.version and not compatible:
            raise ArtifactError(
                f"{self.path} was built by version {facts['tensorrt']}, but {variant.title} is installed; "
                "build it again with `robust-export tensorrt`"
            )
        self.kernel_file = _load_library(variant, self.path) if facts["plugin"] == "library" else None
        self._engine = deserialise(
            variant, self.path.read_bytes(), str(self.path), version_compatible=compatible
        )
        self._graphs = graphs
        self._input, self._output = self._io_names()
        self._min_batch, self.batch_size, self.input_shape = self._profile()
        self.classes = int(self._engine.get_tensor_shape(self._output)[-1])
        self._allocate(cuda or CudaStream())
        self._prepared: OrderedDict[int, PreparedBatch] = OrderedDict()
        self._lock = threading.Lock()  # for the stream and the buffers

    def __call__(self, pixels: Pixels) -> Logits:
        """Return the logits, float32 [N, K], of float32 pixels [N, C, H, W] in [0, 1]."""
        if pixels.shape[1:] != self.input_shape:
            raise ArtifactError(
                f"{self.path} takes images {list(self.input_shape)}; got {list(pixels.shape[1:])}"
            )
        logits = np.empty((len(pixels), self.classes), np.float32)
        with self._lock:
            for start in range(0, len(pixels), self.batch_size):
                batch = pixels[start : start + self.batch_size]
                logits[start : start + len(batch)] = self._run(batch)
        return logits

    def compute(self, batch: int) -> None:
        """Run the engine on the pixels of the last call, without copying, for a benchmark."""
        with self._lock:
            self._start(batch)
            self._cuda.synchronise()

    def fused_nodes(self) -> int:
        """Return the number of plugin layers in the engine, from TensorRT's inspector."""
        layers = engine_layers(self._variant, self._engine)
        return 0 if layers is None else count_plugins(layers)

    def _run(self, pixels: Pixels) -> Logits:
        count = len(pixels)
        size = max(count, self._min_batch)
        self._pixels[:count] = pixels
        self._pixels[count:size] = 0
        self._cuda.upload(self._pixels[:size], self._addresses[self._input])
        self._start(size)
        self._cuda.download(self._addresses[self._output], self._logits[:size])
        self._cuda.synchronise()
        return self._logits[:count]

    def _start(self, size: int) -> None:
        """Enqueue the inference of a batch size, as a graph if there is one."""
        prepared = self._prepared.get(size)
        if prepared is None:
            self._prepare(size)  # this also runs it
            return
        self._prepared.move_to_end(size)
        if prepared.graph is not None:
            self._cuda.launch(prepared.graph)
        elif not self._enqueue(prepared.context):
            raise self._run_error(size)

    def _prepare(self, size: int) -> None:
        """Run a batch size once, which TensorRT requires before a capture, and capture it.

        A graph depends on its execution context, which must not change, so each size has its own.
        """
        while len(self._prepared) >= MAX_PREPARED:
            _, oldest = self._prepared.popitem(last=False)
            if oldest.graph is not None:
                self._cuda.synchronise()
                self._cuda.destroy(oldest.graph)
        context = self._engine.create_execution_context()
        if context is None or not context.set_input_shape(self._input, (size, *self.input_shape)):
            raise self._run_error(size)
        for name, address in self._addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._run_error(size)
        if not self._enqueue(context):
            raise self._run_error(size)
        graph = None
        if self._graphs:
            self._cuda.synchronise()
            graph = self._cuda.capture(lambda: self._enqueue(context))
        self._prepared[size] = PreparedBatch(context, graph)

    def _enqueue(self, context: Any) -> bool:
        return bool(context.execute_async_v3(int(self._cuda.stream)))

    def _run_error(self, size: int) -> ArtifactError:
        return ArtifactError(
            f"{self._variant.title} cannot run {self.path} on {size} images: {self._variant.logged_errors()}"
        )

    def _io_names(self) -> tuple[str, str]:
        """Return the names of the only input and the only output."""
        trt, engine = self._variant.trt, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        is_float = all(engine.get_tensor_dtype(name) == trt.DataType.FLOAT for name in names)
        if len(inputs) != 1 or len(outputs) != 1 or not is_float or [len(shapes[n]) for n in names] != [4, 2]:
            raise ArtifactError(
                f"{self.path} is not an image classifier: its tensors are {shapes}; expected float32 pixels "
                "[N, C, H, W] and logits [N, K]"
            )
        return inputs[0], outputs[0]

    def _profile(self) -> tuple[int, int, tuple[int, ...]]:
        """Return the smallest batch, the largest batch and (C, H, W) of the optimisation profile."""
        smallest, _, largest = self._engine.get_tensor_profile_shape(self._input, 0)
        return smallest[0], largest[0], tuple(largest)[1:]

    def _allocate(self, cuda: CudaStream) -> None:
        """Allocate buffers for the largest batch on the host and the GPU."""
        self._cuda = cuda
        self._pixels = cuda.allocate_pinned((self.batch_size, *self.input_shape))
        self._logits = cuda.allocate_pinned((self.batch_size, self.classes))
        self._addresses = {
            self._input: cuda.allocate(self._pixels.nbytes),
            self._output: cuda.allocate(self._logits.nbytes),
        }


def read_manifest_entry(path: Path) -> tuple[Bundle, dict[str, Any]]:
    """Return an engine's bundle and its entry of the manifest.

    Raises:
        ArtifactError: if the file is in no bundle, or was not written by `robust-export tensorrt`.
        BundleError: if the manifest or the engine was altered.
    """
    folder = path.resolve().parent
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"{path} is in no bundle: expected a {MANIFEST} beside it. Leave an engine where "
            "`robust-export tensorrt` wrote it, or copy the whole folder."
        )
    bundle = Bundle.containing(path)
    facts = bundle.manifest["files"].get(path.name, {})
    if facts.get("kind") != "engine":
        raise ArtifactError(
            f"{path} is not an engine; expected one that `robust-export tensorrt` wrote, such as "
            "model.sm89.engine"
        )
    bundle.file(path.name)
    return bundle, facts


def gpu_mismatch(facts: Mapping[str, Any]) -> str:
    """Return why an engine cannot run on this machine's GPU; "" if it can.

    Args:
        facts: the engine's entry of the manifest.

    Raises:
        ArtifactError: if cuda-bindings is not installed.
    """
    built, capability = facts["compute_capability"], gpu_capability()
    if capability is None:
        return f"it needs a GPU of compute capability {built}, and CUDA finds no GPU"
    present = f"{capability[0]}.{capability[1]}"
    if present == built or facts["options"]["hardware_compatible"]:
        return ""
    return f"it needs a GPU of compute capability {built}, and this machine's has {present}"


def _load_library(variant: Variant, path: Path) -> Path:
    library = trt_library()
    if library is None:
        raise ArtifactError(f"{path} needs the plugin library: {why_no_trt_library()}")
    load_plugins(variant, library)
    return library
