"""The CUDA calls that run an engine: memory, a stream, graphs. Every call's status is checked."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.errors import ArtifactError

Floats = npt.NDArray[np.float32]


class CudaStream:
    """A stream of the GPU; memory allocated here is freed with this object.

    Args:
        runtime: cuda.bindings.runtime, or a replacement in tests.

    Raises:
        ArtifactError: if a CUDA call fails, here or in a method, with the call's name and CUDA's message.
    """

    def __init__(self, runtime: Any | None = None) -> None:
        self.runtime = runtime or _bindings()
        runtime, kinds = self.runtime, self.runtime.cudaMemcpyKind
        self._to_device, self._to_host = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        self.stream = self.call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        weakref.finalize(self, runtime.cudaStreamDestroy, self.stream)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a CUDA function and return its result, without the status."""
        status, *values = getattr(self.runtime, name)(*arguments)
        if status != self.runtime.cudaError_t.cudaSuccess:
            _, text = self.runtime.cudaGetErrorString(status)
            message = text.decode() if isinstance(text, bytes) else str(text)
            raise ArtifactError(
                f"CUDA's {name} failed: {message}. Check with nvidia-smi what else uses this GPU."
            )
        return values[0] if values else None

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of GPU memory."""
        address = int(self.call("cudaMalloc", size))
        weakref.finalize(self, self.runtime.cudaFree, address)
        return address

    def allocate_pinned(self, shape: tuple[int, ...]) -> Floats:
        """Return an array in page-locked host memory, which the GPU copies without a staging buffer."""
        count = int(np.prod(shape))
        address = int(self.call("cudaMallocHost", 4 * count))
        weakref.finalize(self, self.runtime.cudaFreeHost, address)
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)

    def upload(self, host: Floats, device: int) -> None:
        """Enqueue a copy to the GPU."""
        self.call("cudaMemcpyAsync", device, host.ctypes.data, host.nbytes, self._to_device, self.stream)

    def download(self, device: int, host: Floats) -> None:
        """Enqueue a copy from the GPU."""
        self.call("cudaMemcpyAsync", host.ctypes.data, device, host.nbytes, self._to_host, self.stream)

    def synchronise(self) -> None:
        """Wait until all enqueued work is done."""
        self.call("cudaStreamSynchronize", self.stream)

    def capture(self, enqueue: Callable[[], bool]) -> Any | None:
        """Return the work that `enqueue` puts on the stream as an executable graph, None if it cannot be.

        Args:
            enqueue: puts work on the stream without waiting, and returns whether that succeeded.
        """
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)
        enqueued = enqueue()
        status, graph = self.runtime.cudaStreamEndCapture(self.stream)
        if not enqueued or status != self.runtime.cudaError_t.cudaSuccess:
            self.runtime.cudaGetLastError()  # clears the error that a failed capture leaves
            return None
        executable = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        return executable

    def launch(self, executable: Any) -> None:
        """Enqueue a captured graph."""
        self.call("cudaGraphLaunch", executable, self.stream)

    def destroy(self, executable: Any) -> None:
        """Destroy a captured graph."""
        self.call("cudaGraphExecDestroy", executable)


def _bindings() -> Any:
    from cuda.bindings import runtime

    return runtime
