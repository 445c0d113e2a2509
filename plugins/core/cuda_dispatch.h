// Selects the kernel for a call. The caller starts it: by a CUDA launch, or on the CPU in a test.

#pragma once

#include <climits>
#include <type_traits>

#include "cuda_geometry.h"
#include "sparta_cuda.h"

namespace sparta {
namespace cuda {

// Return the largest power of two, up to 16, that divides the addresses of x, residual and y.
inline int64_t alignment_of(const Arguments& a) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.residual) |
                        reinterpret_cast<uintptr_t>(a.y) | 16;
  return static_cast<int64_t>(all & -all);
}

template <class T, int k, bool add, class Launcher>
cudaError_t dispatch_nchw(const Arguments& a, const Launcher& launcher) {
  constexpr int vector16 = 16 / sizeof(T), vector4 = 4 / sizeof(T);  // elements of 16 and of 4 bytes
  const Shape& s = a.shape;
  const int vector = vector_width(sizeof(T), s.w, alignment_of(a));
  const int64_t blocks = block_count(nchw_threads(s.n, s.c, s.h, s.w, vector, k));
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  if (vector == vector16) return launcher.template nchw<T, k, vector16, add>(a, static_cast<unsigned>(blocks));
  if (vector == vector4) return launcher.template nchw<T, k, vector4, add>(a, static_cast<unsigned>(blocks));
  return launcher.template nchw<T, k, 1, add>(a, static_cast<unsigned>(blocks));
}

template <class T, int k, bool add, class Launcher>
cudaError_t dispatch_nhwc8(const Arguments& a, const Launcher& launcher) {
  if constexpr (sizeof(T) == 2 && k <= 3) {
    const Shape& s = a.shape;
    const int64_t blocks = block_count(nhwc8_threads(s.n, s.c, s.h, s.w));
    if (alignment_of(a) < 16) return cudaErrorMisalignedAddress;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    return launcher.template nhwc8<T, k, add>(a, static_cast<unsigned>(blocks));
  } else {
    return cudaErrorInvalidValue;
  }
}

template <class T, int k, class Launcher>
cudaError_t dispatch_layout(const Arguments& a, const Launcher& launcher) {
  if (a.layout == Layout::nchw)
    return a.residual ? dispatch_nchw<T, k, true>(a, launcher) : dispatch_nchw<T, k, false>(a, launcher);
  return a.residual ? dispatch_nhwc8<T, k, true>(a, launcher) : dispatch_nhwc8<T, k, false>(a, launcher);
}

template <class T, class Launcher>
cudaError_t dispatch_kernel_size(const Arguments& a, const Launcher& launcher) {
  switch (a.k) {
    case 1: return dispatch_layout<T, 1>(a, launcher);
    case 3: return dispatch_layout<T, 3>(a, launcher);
    case 5: return dispatch_layout<T, 5>(a, launcher);
    case 7: return dispatch_layout<T, 7>(a, launcher);
    default: return cudaErrorInvalidValue;
  }
}

// Call launcher.nchw<T, k, vector, add>(a, blocks) or launcher.nhwc8<T, k, add>(a, blocks) and return its result, or
// return one of launch()'s errors.
template <class Launcher>
cudaError_t dispatch(const Arguments& a, const Launcher& launcher) {
  const Shape& s = a.shape;
  if (!has_kernel(a.type, a.layout, a.k)) return cudaErrorInvalidValue;
  for (const int64_t size : {s.n, s.c, s.h, s.w})
    if (size < 0 || size > INT_MAX - 8) return cudaErrorInvalidValue;
  if (s.n == 0 || s.c == 0 || s.h == 0 || s.w == 0) return cudaSuccess;
  switch (a.type) {
    case Type::float32: return dispatch_kernel_size<float>(a, launcher);
    case Type::float16: return dispatch_kernel_size<__half>(a, launcher);
    case Type::bfloat16: return dispatch_kernel_size<__nv_bfloat16>(a, launcher);
  }
  return cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace sparta
