"""The GPU of this machine, as CUDA's runtime sees it."""

from __future__ import annotations

from robust_export.errors import ArtifactError


def gpu_capability() -> tuple[int, int] | None:
    """Return the compute capability of the GPU that this process would use, None without a GPU.

    Raises:
        ArtifactError: if cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise ArtifactError(
            "cannot look for a GPU: cuda-bindings is not installed; pip install cuda-bindings"
        ) from None
    attributes = runtime.cudaDeviceAttr
    numbers = []
    try:
        for name in ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor"):
            status, device = runtime.cudaGetDevice()
            if status == runtime.cudaError_t.cudaSuccess:
                status, value = runtime.cudaDeviceGetAttribute(getattr(attributes, name), device)
            if status != runtime.cudaError_t.cudaSuccess:
                return None
            numbers.append(int(value))
    except RuntimeError:  # there is no driver library
        return None
    return numbers[0], numbers[1]
