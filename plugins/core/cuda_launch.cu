#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda_kernel.h"
#include "sparta_cuda.h"

namespace sparta {
namespace cuda {
namespace {

template <class T, int k>
cudaError_t launch_one(const void* x, const void* weight, const void* bias, void* y, const Shape& s, void* stream) {
  const int64_t blocks = tiles(s.n * s.c, s.h, s.w);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const dim3 threads(tile_width, block_height);
  sparta_kernel<T, k><<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<const T*>(bias), static_cast<T*>(y), s.c,
      s.h, s.w);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_size(const void* x, const void* weight, const void* bias, void* y, const Shape& s, int64_t k,
                        void* stream) {
  switch (k) {
    case 1: return launch_one<T, 1>(x, weight, bias, y, s, stream);
    case 3: return launch_one<T, 3>(x, weight, bias, y, s, stream);
    case 5: return launch_one<T, 5>(x, weight, bias, y, s, stream);
    case 7: return launch_one<T, 7>(x, weight, bias, y, s, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

const char* launch(Type type, const void* x, const void* weight, const void* bias, void* y, const Shape& shape,
                   int64_t k, void* stream) {
  if (shape.n == 0 || shape.c == 0 || shape.h == 0 || shape.w == 0) return nullptr;
  cudaError_t status = cudaErrorInvalidValue;
  switch (type) {
    case Type::float32: status = launch_size<float>(x, weight, bias, y, shape, k, stream); break;
    case Type::float16: status = launch_size<__half>(x, weight, bias, y, shape, k, stream); break;
    case Type::bfloat16: status = launch_size<__nv_bfloat16>(x, weight, bias, y, shape, k, stream); break;
  }
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace cuda
}  // namespace sparta
