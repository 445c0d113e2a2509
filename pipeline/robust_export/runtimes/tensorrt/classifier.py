"""An engine of TensorRT, or of TensorRT for RTX, as a classifier. Nothing here needs torch.

Written without a GPU, and tested against stand-ins for TensorRT and CUDA; not run on hardware.
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
from robust_export.runtimes.tensorrt.cuda import Cuda
from robust_export.runtimes.tensorrt.engine import count_plugins, deserialise, engine_layers
from robust_export.runtimes.tensorrt.gpu_info import gpu
from robust_export.runtimes.tensorrt.plugins import load_plugins
from robust_export.runtimes.tensorrt.variants import find

SHAPES = 8  # sizes of batches that are kept ready, each with a graph and an execution context of its own


class NoGPU(ArtifactError):
    """An engine that this machine has no GPU for."""


@dataclass
class Ready:
    """An execution context for one size of batch, and the graph of its work, None where it runs without."""

    context: Any
    graph: Any | None


class TensorRTClassifier:
    """Runs an engine of a bundle, a batch at a time, on the GPU that is there.

    Batches larger than the engine's profile are cut, smaller ones filled up with black images. Memory is
    taken once, for the largest batch; a size that comes again is replayed as a CUDA graph.

    Args:
        path: an engine in its bundle, whose manifest says what it is.
        facts: what a manifest would say, for an engine that is in no bundle.
        graphs: use CUDA graphs.
        cuda: what stands in for CUDA.

    Raises:
        NoGPU: if this machine has no GPU, or one of another compute capability.
        ArtifactError: if TensorRT or the plugin is missing or of another version, or the file is no engine
            of a classifier.
    """

    def __init__(
        self, path: str | Path, *, facts: Mapping[str, Any] | None = None, graphs: bool = True,
        cuda: Cuda | None = None,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        self.labels: list[str] | None = None
        if facts is None:
            bundle, facts = described(self.path)
            self.labels = bundle.labels
        self.precision, self.sparta_nodes = str(facts["precision"]), int(facts["sparta_nodes"])
        self.runtime = "tensorrt" if facts["flavor"] == "tensorrt" else "tensorrt-rtx"
        if why := why_elsewhere(facts):
            raise NoGPU(f"{self.path} cannot run here: {why}. Build one with `robust-export tensorrt`")
        flavor = find(facts["flavor"])
        options = facts["options"]
        if facts["tensorrt"] != flavor.version and not options["version_compatible"]:
            raise ArtifactError(
                f"{self.path} was built by version {facts['tensorrt']}; this is {flavor.title}: build it "
                "again with `robust-export tensorrt`"
            )
        self.kernel_file = _load_library(flavor, self.path) if facts["plugin"] == "library" else None
        self._flavor, self._graphs = flavor, graphs
        self._engine = deserialise(
            flavor, self.path.read_bytes(), str(self.path), version_compatible=options["version_compatible"]
        )
        self._input, self._output = self._signature()
        shapes = [tuple(s) for s in self._engine.get_tensor_profile_shape(self._input, 0)]
        self._least, self.batch_size = shapes[0][0], shapes[2][0]
        self.plane = shapes[2][1:]
        self.classes = int(self._engine.get_tensor_shape(self._output)[-1])
        self._cuda = cuda or Cuda()
        self._pixels = self._cuda.host((self.batch_size, *self.plane))
        self._logits = self._cuda.host((self.batch_size, self.classes))
        self._device = {
            self._input: self._cuda.device(self._pixels.nbytes),
            self._output: self._cuda.device(self._logits.nbytes),
        }
        self._ready: OrderedDict[int, Ready] = OrderedDict()
        self._lock = threading.Lock()  # one stream, one set of buffers

    def __call__(self, pixels: Pixels) -> Logits:
        """Return the logits, float32 [N, K], of float32 pixels [N, C, H, W] in [0, 1]."""
        if pixels.shape[1:] != self.plane:
            raise ArtifactError(f"{self.path} takes images {list(self.plane)}; got {list(pixels.shape[1:])}")
        logits = np.empty((len(pixels), self.classes), np.float32)
        with self._lock:
            for start in range(0, len(pixels), self.batch_size):
                part = pixels[start : start + self.batch_size]
                logits[start : start + len(part)] = self._run(part)
        return logits

    def compute(self, batch: int) -> None:
        """Run the engine once on what the last call left in the GPU's memory; for a benchmark."""
        with self._lock:
            self._start(batch)
            self._cuda.wait()

    def fused_nodes(self) -> int:
        """Return how many layers of the engine are Sparta's plugin, by TensorRT's inspector."""
        found = engine_layers(self._flavor, self._engine)
        return 0 if found is None else count_plugins(found)

    def _run(self, pixels: Pixels) -> Logits:
        count = len(pixels)
        size = max(count, self._least)
        self._pixels[:count] = pixels
        self._pixels[count:size] = 0
        self._cuda.upload(self._pixels[:size], self._device[self._input])
        self._start(size)
        self._cuda.download(self._device[self._output], self._logits[:size])
        self._cuda.wait()
        return self._logits[:count]

    def _start(self, size: int) -> None:
        """Put the engine's work on the stream: by the graph of this size where there is one."""
        ready = self._ready.get(size)
        if ready is None:
            self._prepare(size)  # which runs it
            return
        self._ready.move_to_end(size)
        if ready.graph is not None:
            self._cuda.replay(ready.graph)
        elif not self._enqueue(ready.context):
            raise self._failure(size)

    def _prepare(self, size: int) -> None:
        """Run a size for the first time, as a graph must have been, and then record it.

        A graph is bound to its execution context, which must not change: so each size has one of its own.
        """
        while len(self._ready) >= SHAPES:
            _, old = self._ready.popitem(last=False)
            if old.graph is not None:
                self._cuda.wait()
                self._cuda.forget(old.graph)
        context = self._engine.create_execution_context()
        if context is None or not context.set_input_shape(self._input, (size, *self.plane)):
            raise self._failure(size)
        for name, address in self._device.items():
            if not context.set_tensor_address(name, address):
                raise self._failure(size)
        if not self._enqueue(context):
            raise self._failure(size)
        graph = None
        if self._graphs:
            self._cuda.wait()
            graph = self._cuda.record(lambda: self._enqueue(context))
        self._ready[size] = Ready(context, graph)

    def _enqueue(self, context: Any) -> bool:
        return bool(context.execute_async_v3(int(self._cuda.stream)))

    def _failure(self, size: int) -> ArtifactError:
        return ArtifactError(
            f"{self._flavor.title} cannot run {self.path} on {size} images: {self._flavor.problem()}"
        )

    def _signature(self) -> tuple[str, str]:
        """Return the names of the only input and the only output."""
        trt, engine = self._flavor.trt, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        wide = all(engine.get_tensor_dtype(name) == trt.DataType.FLOAT for name in names)
        if len(inputs) != 1 or len(outputs) != 1 or not wide or [len(shapes[n]) for n in names] != [4, 2]:
            raise ArtifactError(
                f"{self.path} is no classifier of images: its tensors are {shapes}; expected float32 pixels "
                "[N, C, H, W] and logits [N, K]"
            )
        return inputs[0], outputs[0]


def described(path: Path) -> tuple[Bundle, dict[str, Any]]:
    """Return an engine's bundle and what its manifest says of the engine.

    Raises:
        ArtifactError: if it is not in a bundle, or nothing that `robust-export tensorrt` built.
        BundleError: if the bundle was altered.
    """
    folder = path.resolve().parent
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"{path} is in no bundle, whose {MANIFEST} says what it was built from: leave an engine where "
            "`robust-export tensorrt` wrote it, or copy the whole folder"
        )
    bundle = Bundle.open(folder)
    facts = bundle.manifest["files"].get(path.name, {})
    if facts.get("kind") != "engine":
        raise ArtifactError(
            f"{path} is no engine; expected one that `robust-export tensorrt` wrote, such as "
            "model.sm89.engine"
        )
    bundle.file(path.name)
    return bundle, facts


def why_elsewhere(facts: Mapping[str, Any]) -> str:
    """Return why an engine cannot run on this machine's GPU, nothing if it can.

    Args:
        facts: what the manifest says of it.

    Raises:
        ArtifactError: if nobody can tell, see `flavors.gpu`.
    """
    built, here = facts["compute_capability"], gpu()
    if here is None:
        return f"it is for GPUs of compute capability {built}, and CUDA sees none here"
    there = f"{here[0]}.{here[1]}"
    if there == built or facts["options"]["hardware_compatible"]:
        return ""
    return f"it is for GPUs of compute capability {built}, and this machine's has {there}"


def _load_library(flavor: Any, path: Path) -> Path:
    library = trt_library()
    if library is None:
        raise ArtifactError(f"{path} runs Sparta by the plugin library: {why_no_trt_library()}")
    load_plugins(flavor, library)
    return library
