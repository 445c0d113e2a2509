"""The compiled kernels: found, built with CMake into a cache, and loaded.

A build is a folder `<source>-<machine>-<tools>` of the cache: digests of the sources under plugins/ and of
what compiled them, and the kind of CPU. Instructions beyond its baseline (AVX2, AVX-512) are chosen when the
library is loaded, so that a build serves every CPU of its kind. It has a library for ONNX Runtime and, where
nvcc and TensorRT's headers are, one for TensorRT. Nothing here needs torch.

Environment: ROBUST_EXPORT_ORT_LIBRARY and ROBUST_EXPORT_TRT_LIBRARY are libraries to use instead ("" for
none); ROBUST_EXPORT_CACHE the cache; ROBUST_EXPORT_CUDA_ARCHS the GPUs to compile for;
ONNXRUNTIME_INCLUDE_DIR and TENSORRT_INCLUDE_DIR the headers; CXX and CUDACXX the compilers.
"""

from robust_export.kernels.building import Build, build
from robust_export.kernels.libraries import (
    load_problem,
    open_trt_library,
    ort_library,
    trt_library,
    why_no_library,
    why_no_trt_library,
)
from robust_export.kernels.paths import HOW, KERNEL_SIZES, ORT_LIBRARY, TRT_LIBRARY, cache, sources
from robust_export.kernels.status import describe, ort_has_cuda
from robust_export.kernels.toolchain import Tools, find_nvcc, find_tools

__all__ = [
    "HOW", "KERNEL_SIZES", "ORT_LIBRARY", "TRT_LIBRARY", "Build", "Tools", "build", "cache", "describe",
    "find_nvcc", "find_tools", "load_problem", "open_trt_library", "ort_has_cuda", "ort_library", "sources",
    "trt_library", "why_no_library", "why_no_trt_library",
]  # fmt: skip
