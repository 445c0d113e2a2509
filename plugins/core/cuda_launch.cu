#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda_dispatch.h"
#include "cuda_kernel.h"
#include "sparta_cuda.h"

namespace sparta {
namespace cuda {
namespace {

template <class T, int k, int V, bool add>
__global__ void __launch_bounds__(block_threads, plane_blocks_resident(k))
    planes_kernel(const T* __restrict__ x, const T* __restrict__ residual, const T* __restrict__ weight,
                  const T* __restrict__ bias, T* __restrict__ y, int n, int c, int h, int w) {
  planes<T, k, V, add>(x, residual, weight, bias, y, n, c, h, w);
}

template <class T, int k, bool add>
__global__ void __launch_bounds__(block_threads, channel_blocks_resident(add))
    channels8_kernel(const T* __restrict__ x, const T* __restrict__ residual, const T* __restrict__ weight,
                     const T* __restrict__ bias, T* __restrict__ y, int n, int c, int h, int w) {
  channels8<T, k, add>(x, residual, weight, bias, y, n, c, h, w);
}

struct OnStream {
  cudaStream_t stream;

  template <class T, int k, int V, bool add>
  cudaError_t planes(const Arguments& a, unsigned blocks) const {
    return start<T>(planes_kernel<T, k, V, add>, a, blocks);
  }
  template <class T, int k, bool add>
  cudaError_t channels8(const Arguments& a, unsigned blocks) const {
    return start<T>(channels8_kernel<T, k, add>, a, blocks);
  }
  template <class T, class Kernel>
  cudaError_t start(Kernel kernel, const Arguments& a, unsigned blocks) const {
    const auto of = [](const void* p) { return static_cast<const T*>(p); };
    kernel<<<blocks, block_threads, 0, stream>>>(
        of(a.x), of(a.residual), of(a.weight), of(a.bias), static_cast<T*>(a.y), static_cast<int>(a.shape.n),
        static_cast<int>(a.shape.c), static_cast<int>(a.shape.h), static_cast<int>(a.shape.w));
    return cudaGetLastError();
  }
};

}  // namespace

cudaError_t launch(const Arguments& arguments, cudaStream_t stream) { return dispatch(arguments, OnStream{stream}); }

}  // namespace cuda
}  // namespace sparta
