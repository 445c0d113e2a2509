// Sparta on a GPU: y = Sparta(x; weight, bias), or Sparta(x + residual; weight, bias), as sparta.h has it.
// Compiled by nvcc; whoever calls it needs CUDA's headers, not nvcc.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "sparta.h"

namespace sparta {
namespace cuda {

// How x, residual and y lie in memory.
enum class Layout {
  planes,     // [N, C, H, W]: TensorRT's kLINEAR
  channels8,  // [N, H, W, ceil(C / 8) * 8]: TensorRT's kHWC8; the channels that pad are written as 0
};

// Whether there is a kernel: every type and k = 1, 3, 5, 7 for planes; half precision and k = 1, 3 for channels8.
constexpr bool supports(Type type, Layout layout, int64_t k) {
  return layout == Layout::planes ? sparta::supports(k) : type != Type::float32 && (k == 1 || k == 3);
}

// One call. All pointers are the device's; y overlaps neither x nor residual.
struct Arguments {
  Type type;             // of all tensors; arithmetic is float32
  Layout layout;         // of x, residual and y
  const void* x;
  const void* residual;  // null for none; x + residual is not rounded
  const void* weight;    // [C, 1, k, k]
  const void* bias;      // [C]
  void* y;
  Shape shape;           // N, C, H, W, whatever the layout
  int64_t k;
};

// Puts the kernel on a stream and returns: neither waits nor allocates. Empty tensors need no kernel.
// cudaErrorInvalidValue where supports() says no, or sizes are negative or H, W beyond int32;
// cudaErrorInvalidConfiguration for more blocks than a grid has; else what CUDA says of the launch.
cudaError_t launch(const Arguments& arguments, cudaStream_t stream);

}  // namespace cuda
}  // namespace sparta
