"""The C++ headers that the kernels are built with, of the runtimes whose Python packages have none."""

from robust_export.kernels.headers.folder import Headers
from robust_export.kernels.headers.onnxruntime import find_headers
from robust_export.kernels.headers.tensorrt import find_tensorrt_headers

__all__ = ["Headers", "find_headers", "find_tensorrt_headers"]
