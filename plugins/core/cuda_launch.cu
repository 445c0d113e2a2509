// The CUDA launch of the kernels.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda_dispatch.h"
#include "cuda_kernel.h"
#include "sparta_cuda.h"

namespace sparta {
namespace cuda {
namespace {

template <class T, int k, int V, bool add>
__global__ void __launch_bounds__(block_threads, nchw_min_blocks(k))
    nchw_kernel(const T* __restrict__ x, const T* __restrict__ residual, const T* __restrict__ weight,
                const T* __restrict__ bias, T* __restrict__ y, int n, int c, int h, int w) {
  forward_nchw<T, k, V, add>(x, residual, weight, bias, y, n, c, h, w);
}

template <class T, int k, bool add>
__global__ void __launch_bounds__(block_threads, nhwc8_min_blocks(add))
    nhwc8_kernel(const T* __restrict__ x, const T* __restrict__ residual, const T* __restrict__ weight,
                 const T* __restrict__ bias, T* __restrict__ y, int n, int c, int h, int w) {
  forward_nhwc8<T, k, add>(x, residual, weight, bias, y, n, c, h, w);
}

struct StreamLauncher {
  cudaStream_t stream;

  template <class T, int k, int V, bool add>
  cudaError_t nchw(const Arguments& a, unsigned blocks) const {
    return start<T>(nchw_kernel<T, k, V, add>, a, blocks);
  }
  template <class T, int k, bool add>
  cudaError_t nhwc8(const Arguments& a, unsigned blocks) const {
    return start<T>(nhwc8_kernel<T, k, add>, a, blocks);
  }
  template <class T, class Kernel>
  cudaError_t start(Kernel kernel, const Arguments& a, unsigned blocks) const {
    const auto typed = [](const void* p) { return static_cast<const T*>(p); };
    kernel<<<blocks, block_threads, 0, stream>>>(
        typed(a.x), typed(a.residual), typed(a.weight), typed(a.bias), static_cast<T*>(a.y),
        static_cast<int>(a.shape.n), static_cast<int>(a.shape.c), static_cast<int>(a.shape.h),
        static_cast<int>(a.shape.w));
    return cudaGetLastError();
  }
};

}  // namespace

cudaError_t launch(const Arguments& arguments, cudaStream_t stream) {
  return dispatch(arguments, StreamLauncher{stream});
}

}  // namespace cuda
}  // namespace sparta
