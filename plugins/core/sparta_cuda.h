// Sparta on a GPU: y = Sparta(x; weight, bias), or Sparta(x + residual; weight, bias), as defined in sparta.h.
// nvcc compiles the kernels; a caller needs CUDA's headers, not nvcc.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "sparta.h"

namespace sparta {
namespace cuda {

// Memory layout of x, residual and y.
enum class Layout {
  nchw,   // [N, C, H, W]: TensorRT's kLINEAR
  nhwc8,  // [N, H, W, ceil(C / 8) * 8]: TensorRT's kHWC8; the padding channels of y are set to 0
};

// Whether there is a kernel: all types and k = 1, 3, 5, 7 for nchw; float16, bfloat16 and k = 1, 3 for nhwc8.
constexpr bool has_kernel(Type type, Layout layout, int64_t k) {
  return layout == Layout::nchw ? is_supported_kernel_size(k) : type != Type::float32 && (k == 1 || k == 3);
}

// The arguments of one call. All pointers are device pointers; y overlaps neither x nor residual.
struct Arguments {
  Type type;      // of all tensors; the arithmetic is float32
  Layout layout;  // of x, residual and y
  const void* x;
  const void* residual;  // null for none; x + residual is not rounded
  const void* weight;    // [C, 1, k, k]
  const void* bias;      // [C]
  void* y;
  Shape shape;  // N, C, H, W in either layout
  int64_t k;
};

// Enqueue the kernel on a stream and return without waiting; no memory is allocated. Empty tensors start no kernel.
// Returns cudaErrorInvalidValue if has_kernel() is false, a size is negative, or a size exceeds int32;
// cudaErrorMisalignedAddress for nhwc8 pointers not aligned to 16 bytes; cudaErrorInvalidConfiguration if the grid
// would have too many blocks; otherwise the status of the launch.
cudaError_t launch(const Arguments& arguments, cudaStream_t stream);

}  // namespace cuda
}  // namespace sparta
