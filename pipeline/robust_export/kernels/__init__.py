"""The native libraries with the Sparta kernels: found, or built with CMake into a cache. Needs no torch.

A build is a folder `<source digest>-<machine>-<tool digest>` of the cache. It holds a library for ONNX
Runtime and, if nvcc and TensorRT's headers are available, one for TensorRT. The instruction set (AVX-512,
AVX2 or the baseline) is chosen when the library is loaded: one build runs on every CPU of an architecture.

Environment variables: ROBUST_EXPORT_ORT_LIBRARY and ROBUST_EXPORT_TRT_LIBRARY name libraries to use instead
("" for none); ROBUST_EXPORT_CACHE the cache folder; ROBUST_EXPORT_CUDA_ARCHS the GPUs to compile for;
ONNXRUNTIME_INCLUDE_DIR and TENSORRT_INCLUDE_DIR the header folders; CXX and CUDACXX the compilers.
"""

from robust_export.kernels.building import Build, build
from robust_export.kernels.libraries import (
    ort_has_cuda,
    ort_library,
    ort_load_error,
    trt_library,
    trt_library_info,
    why_no_ort_library,
    why_no_trt_library,
)
from robust_export.kernels.paths import (
    BUILD_HINT,
    KERNEL_SIZES,
    ORT_LIBRARY,
    TRT_LIBRARY,
    cache_folder,
    source_folder,
)
from robust_export.kernels.status import describe
from robust_export.kernels.toolchain import Tools, find_nvcc, find_tools

__all__ = [
    "BUILD_HINT", "KERNEL_SIZES", "ORT_LIBRARY", "TRT_LIBRARY", "Build", "Tools", "build", "cache_folder",
    "describe", "find_nvcc", "find_tools", "ort_has_cuda", "ort_library", "ort_load_error", "source_folder",
    "trt_library", "trt_library_info", "why_no_ort_library", "why_no_trt_library",
]  # fmt: skip
