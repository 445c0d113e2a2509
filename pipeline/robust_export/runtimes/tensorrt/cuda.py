"""The little of CUDA that running an engine takes: memory, a stream, graphs. Every call is checked."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.errors import ArtifactError

Floats = npt.NDArray[np.float32]


class Cuda:
    """One stream of the GPU that is there, and what lives as long as this does.

    Args:
        runtime: cuda.bindings.runtime, or what stands in for it.

    Raises:
        ArtifactError: if any call fails, here or later, with the name of the call and CUDA's own message.
    """

    def __init__(self, runtime: Any | None = None) -> None:
        self.runtime = runtime or _bindings()
        runtime, kind = self.runtime, self.runtime.cudaMemcpyKind
        self._to_device, self._to_host = kind.cudaMemcpyHostToDevice, kind.cudaMemcpyDeviceToHost
        self.stream = self.call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        weakref.finalize(self, runtime.cudaStreamDestroy, self.stream)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call CUDA, and return what it returns beside its status."""
        status, *values = getattr(self.runtime, name)(*arguments)
        if status != self.runtime.cudaError_t.cudaSuccess:
            _, text = self.runtime.cudaGetErrorString(status)
            said = text.decode() if isinstance(text, bytes) else str(text)
            raise ArtifactError(f"CUDA's {name} failed: {said}. See what else uses this GPU (nvidia-smi)")
        return values[0] if values else None

    def device(self, size: int) -> int:
        """Return the address of `size` bytes of the GPU's memory."""
        address = int(self.call("cudaMalloc", size))
        weakref.finalize(self, self.runtime.cudaFree, address)
        return address

    def host(self, shape: tuple[int, ...]) -> Floats:
        """Return page-locked memory, which copies to and from the GPU without a detour."""
        count = int(np.prod(shape))
        address = int(self.call("cudaMallocHost", 4 * count))
        weakref.finalize(self, self.runtime.cudaFreeHost, address)
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)

    def upload(self, host: Floats, device: int) -> None:
        """Copy to the GPU, in the stream's order."""
        self.call("cudaMemcpyAsync", device, host.ctypes.data, host.nbytes, self._to_device, self.stream)

    def download(self, device: int, host: Floats) -> None:
        """Copy from the GPU, in the stream's order."""
        self.call("cudaMemcpyAsync", host.ctypes.data, device, host.nbytes, self._to_host, self.stream)

    def wait(self) -> None:
        """Return once the stream has done all that it was given."""
        self.call("cudaStreamSynchronize", self.stream)

    def record(self, work: Callable[[], bool]) -> Any | None:
        """Return what `work` puts on the stream as a graph for `replay`; None if it cannot be recorded.

        Args:
            work: puts its work on the stream, waits for nothing, and returns whether it could.
        """
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)
        done = work()
        success = self.runtime.cudaError_t.cudaSuccess
        status, graph = self.runtime.cudaStreamEndCapture(self.stream)
        if not done or status != success:
            self.runtime.cudaGetLastError()  # which a failed capture leaves behind
            return None
        executable = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        return executable

    def replay(self, executable: Any) -> None:
        self.call("cudaGraphLaunch", executable, self.stream)

    def forget(self, executable: Any) -> None:
        """Destroy a graph."""
        self.call("cudaGraphExecDestroy", executable)


def _bindings() -> Any:
    from cuda.bindings import runtime

    return runtime
