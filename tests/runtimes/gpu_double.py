"""Test doubles of CUDA and TensorRT: an engine whose logits ONNX Runtime computes on the CPU.

GPU memory is host memory that only the calls below may touch. Work enqueued on the stream runs when the
stream is synchronised; during a capture it is recorded instead.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier


class Kind(enum.Enum):
    cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost = range(2)  # noqa: N815


class Cuda:
    """Replaces cuda.bindings.runtime. The call named by `fails` returns an error."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)  # noqa: N815
    cudaMemcpyKind = Kind  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815

    def __init__(self) -> None:
        self.fails = ""
        self.memory: dict[int, Any] = {}  # address to allocation
        self.queue: list[Callable[[], None]] = []  # enqueued work
        self.recording: list[Callable[[], None]] | None = None
        self.capture_fails = False
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = self.instantiated = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cuda") and name[4].isupper() and name == object.__getattribute__(self, "fails"):
            return lambda *_: (2, None)
        return object.__getattribute__(self, name)

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"out of memory"

    def cudaGetLastError(self) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:  # noqa: N802
        return 0, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def _allocate(self, size: int) -> tuple[int, int]:
        buffer = (ctypes.c_byte * size)()
        ctypes.memset(buffer, 0xFF, size)  # NaN until written
        self.memory[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    cudaMalloc = cudaMallocHost = _allocate  # noqa: N815

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        del self.memory[address]
        return (0,)

    cudaFreeHost = cudaFree  # noqa: N815

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Kind, stream: int) -> tuple[int]:  # noqa: N802
        assert stream == 7
        device = to if kind is Kind.cudaMemcpyHostToDevice else source
        assert size <= ctypes.sizeof(self.memory[device])
        self.enqueue(lambda: _move(to, source, size))
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        assert self.recording is None, "synchronised during a capture"
        for work in self.queue:
            work()
        self.queue.clear()
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        assert not self.queue, "capture began with work enqueued"
        self.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:  # noqa: N802
        recorded, self.recording = self.recording, None
        return (901, None) if self.capture_fails else (0, recorded)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, int]:  # noqa: N802
        self.instantiated += 1
        self.graphs[self.instantiated] = graph
        return 0, self.instantiated

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[int]:  # noqa: N802
        self.launches += 1
        for work in self.graphs[executable]:
            self.enqueue(work)
        return (0,)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[int]:  # noqa: N802
        del self.graphs[executable]
        return (0,)


def _move(to: int, source: int, size: int) -> None:
    ctypes.memmove(to, source, size)


class Mode(enum.Enum):
    INPUT, OUTPUT = range(2)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.warm = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "pixels"
        smallest, largest = self.engine.batches
        self.shape = shape
        return smallest <= shape[0] <= largest

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address in self.engine.cuda.memory

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        assert self.addresses.keys() == {"pixels", "logits"}
        assert self.warm or self.engine.cuda.recording is None, "captured before the first run"
        self.warm = True
        if self.engine.fails:
            return False
        self.engine.cuda.enqueue(self._compute)
        return True

    def _compute(self) -> None:
        source = (ctypes.c_float * int(np.prod(self.shape))).from_address(self.addresses["pixels"])
        pixels = np.ctypeslib.as_array(source).reshape(self.shape).copy()
        assert np.isfinite(pixels).all(), "the engine read unwritten memory"
        logits = self.engine.model(pixels)
        ctypes.memmove(self.addresses["logits"], logits.ctypes.data, logits.nbytes)


class Engine:
    """Replaces trt.ICudaEngine."""

    num_io_tensors = 2

    def __init__(self, cuda: Cuda, onnx_file: Path, batches: tuple[int, int]) -> None:
        self.cuda, self.batches = cuda, batches
        self.model = OnnxRuntimeClassifier(onnx_file, kernel=False)
        self.fails = False
        self.contexts = 0
        self.names = ("pixels", "logits")
        self.dtypes = {"pixels": "FLOAT", "logits": "FLOAT"}

    def get_tensor_name(self, i: int) -> str:
        return self.names[i]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "pixels" else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        return self.dtypes[name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.model.input_shape) if name == "pixels" else (-1, self.model.classes)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("pixels", 0)
        smallest, largest = self.batches
        return [(n, *self.model.input_shape) for n in (smallest, largest, largest)]

    def create_execution_context(self) -> Context:
        self.contexts += 1
        return Context(self)

    def create_engine_inspector(self) -> Any:
        nodes = [{"LayerType": "PluginV3"}] * self.model.sparta_nodes
        text = json.dumps({"Layers": [{"LayerType": "gemm"}, *nodes]})
        return SimpleNamespace(get_engine_information=lambda kind: text)


def tensorrt(engine: Engine | None) -> Any:
    """Return a replacement of the module tensorrt, which deserialises b"a plan" to `engine`."""

    class Runtime:
        def __init__(self, logger: object) -> None:
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            return engine if plan == b"a plan" else None

    return SimpleNamespace(
        __name__="tensorrt", __version__="11.1.0", Runtime=Runtime, TensorIOMode=Mode,
        DataType=SimpleNamespace(FLOAT="FLOAT"), LayerInformationFormat=SimpleNamespace(JSON="json"),
    )  # fmt: skip
