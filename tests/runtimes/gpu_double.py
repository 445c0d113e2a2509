"""Stand-ins for CUDA and TensorRT, with which an engine "runs" on the CPU: ONNX Runtime computes its logits.

The GPU's memory is plain memory that nobody may touch but by the calls below; work on a stream is done when
the stream is waited for, and what is captured is not done but recorded.
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
    """Stands in for cuda.bindings.runtime. `fails` names the call that fails from now on."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)  # noqa: N815
    cudaMemcpyKind = Kind  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815

    def __init__(self) -> None:
        self.fails = ""
        self.memory: dict[int, Any] = {}  # what is allocated
        self.queue: list[Callable[[], None]] = []  # what the stream has still to do
        self.recording: list[Callable[[], None]] | None = None
        self.spoilt = False  # whether the capture has met what cannot be captured
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.replays = self.made = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cuda") and name[4].isupper() and name == object.__getattribute__(self, "fails"):
            return lambda *given: (2, None)
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
        room = (ctypes.c_byte * size)()
        ctypes.memset(room, 0xFF, size)  # NaN, until somebody writes
        self.memory[ctypes.addressof(room)] = room
        return 0, ctypes.addressof(room)

    cudaMalloc = cudaMallocHost = _allocate  # noqa: N815

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        del self.memory[address]
        return (0,)

    cudaFreeHost = cudaFree  # noqa: N815

    def put(self, work: Callable[[], None]) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Kind, stream: int) -> tuple[int]:  # noqa: N802
        assert stream == 7
        device = to if kind is Kind.cudaMemcpyHostToDevice else source
        assert size <= ctypes.sizeof(self.memory[device])
        self.put(lambda: _move(to, source, size))
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        assert self.recording is None, "nothing may be waited for while a stream is captured"
        for work in self.queue:
            work()
        self.queue.clear()
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        assert not self.queue, "a stream is captured while it has work"
        self.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:  # noqa: N802
        recorded, self.recording = self.recording, None
        return (901, None) if self.spoilt else (0, recorded)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, int]:  # noqa: N802
        self.made += 1
        self.graphs[self.made] = graph
        return 0, self.made

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[int]:  # noqa: N802
        self.replays += 1
        for work in self.graphs[executable]:
            self.put(work)
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
        least, most = self.engine.batches
        self.shape = shape
        return least <= shape[0] <= most

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address in self.engine.cuda.memory

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        assert self.addresses.keys() == {"pixels", "logits"}
        assert self.warm or self.engine.cuda.recording is None, "TensorRT is captured before it ever ran"
        self.warm = True
        if self.engine.fails:
            return False
        self.engine.cuda.put(self._compute)
        return True

    def _compute(self) -> None:
        source = (ctypes.c_float * int(np.prod(self.shape))).from_address(self.addresses["pixels"])
        pixels = np.ctypeslib.as_array(source).reshape(self.shape).copy()
        assert np.isfinite(pixels).all(), "the engine reads what nobody wrote"
        logits = self.engine.model(pixels)
        ctypes.memmove(self.addresses["logits"], logits.ctypes.data, logits.nbytes)


class Engine:
    """Stands in for trt.ICudaEngine."""

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
        return (-1, *self.model.plane) if name == "pixels" else (-1, self.model.classes)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("pixels", 0)
        least, most = self.batches
        return [(n, *self.model.plane) for n in (least, most, most)]

    def create_execution_context(self) -> Context:
        self.contexts += 1
        return Context(self)

    def create_engine_inspector(self) -> Any:
        nodes = [{"LayerType": "PluginV3"}] * self.model.sparta_nodes
        text = json.dumps({"Layers": [{"LayerType": "gemm"}, *nodes]})
        return SimpleNamespace(get_engine_information=lambda kind: text)


def tensorrt(engine: Engine | None) -> Any:
    """Return what stands in for the module tensorrt; it deserialises every plan to `engine`."""

    class Runtime:
        def __init__(self, logger: object) -> None:
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            return engine if plan == b"a plan" else None

    return SimpleNamespace(
        __name__="tensorrt", __version__="11.1.0", Runtime=Runtime, TensorIOMode=Mode,
        DataType=SimpleNamespace(FLOAT="FLOAT"), LayerInformationFormat=SimpleNamespace(JSON="json"),
    )  # fmt: skip
