"""The GPU of this machine, as CUDA's runtime sees it."""

from __future__ import annotations

from robust_export.errors import ArtifactError


def gpu() -> tuple[int, int] | None:
    """Return the compute capability of the GPU that this process would use, None where there is none.

    Raises:
        ArtifactError: if cuda-bindings, which is asked, is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise ArtifactError(
            "whether there is a GPU cannot be told: cuda-bindings is not installed; pip install cuda-bindings"
        ) from None
    attribute = runtime.cudaDeviceAttr
    found = []
    try:
        for name in ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor"):
            status, device = runtime.cudaGetDevice()
            if status == runtime.cudaError_t.cudaSuccess:
                status, value = runtime.cudaDeviceGetAttribute(getattr(attribute, name), device)
            if status != runtime.cudaError_t.cudaSuccess:
                return None
            found.append(int(value))
    except RuntimeError:  # no driver library at all
        return None
    return found[0], found[1]
