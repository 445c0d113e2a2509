// Chooses the kernel for a call. What starts it is the caller's: CUDA's launch, or a test on a CPU.

#pragma once

#include <climits>
#include <type_traits>

#include "cuda_geometry.h"
#include "sparta_cuda.h"

namespace sparta {
namespace cuda {

// The largest power of two, up to 16, that divides the address of every element of a call.
inline int64_t alignment_of(const Arguments& a) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.residual) |
                        reinterpret_cast<uintptr_t>(a.y) | 16;
  return static_cast<int64_t>(all & -all);
}

template <class T, int k, bool add, class Start>
cudaError_t dispatch_planes(const Arguments& a, const Start& start) {
  constexpr int widest = 16 / sizeof(T), narrower = 4 / sizeof(T);
  const Shape& s = a.shape;
  const int vector = vector_of(sizeof(T), s.w, alignment_of(a));
  const int64_t blocks = blocks_of(plane_threads(s.n, s.c, s.h, s.w, vector, k));
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  if (vector == widest) return start.template planes<T, k, widest, add>(a, static_cast<unsigned>(blocks));
  if (vector == narrower) return start.template planes<T, k, narrower, add>(a, static_cast<unsigned>(blocks));
  return start.template planes<T, k, 1, add>(a, static_cast<unsigned>(blocks));
}

template <class T, int k, bool add, class Start>
cudaError_t dispatch_channels8(const Arguments& a, const Start& start) {
  if constexpr (sizeof(T) == 2 && k <= 3) {
    const Shape& s = a.shape;
    const int64_t blocks = blocks_of(channel_threads(s.n, s.c, s.h, s.w));
    if (alignment_of(a) < 16) return cudaErrorMisalignedAddress;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    return start.template channels8<T, k, add>(a, static_cast<unsigned>(blocks));
  } else {
    return cudaErrorInvalidValue;
  }
}

template <class T, int k, class Start>
cudaError_t dispatch_form(const Arguments& a, const Start& start) {
  if (a.layout == Layout::planes)
    return a.residual ? dispatch_planes<T, k, true>(a, start) : dispatch_planes<T, k, false>(a, start);
  return a.residual ? dispatch_channels8<T, k, true>(a, start) : dispatch_channels8<T, k, false>(a, start);
}

template <class T, class Start>
cudaError_t dispatch_size(const Arguments& a, const Start& start) {
  switch (a.k) {
    case 1: return dispatch_form<T, 1>(a, start);
    case 3: return dispatch_form<T, 3>(a, start);
    case 5: return dispatch_form<T, 5>(a, start);
    case 7: return dispatch_form<T, 7>(a, start);
    default: return cudaErrorInvalidValue;
  }
}

// `start` has planes<T, k, vector, add>(arguments, blocks) and channels8<T, k, add>(arguments, blocks); returned
// is what it returns, or launch()'s errors.
template <class Start>
cudaError_t dispatch(const Arguments& a, const Start& start) {
  const Shape& s = a.shape;
  if (!supports(a.type, a.layout, a.k)) return cudaErrorInvalidValue;
  for (const int64_t size : {s.n, s.c, s.h, s.w})
    if (size < 0 || size > INT_MAX - 8) return cudaErrorInvalidValue;
  if (s.n == 0 || s.c == 0 || s.h == 0 || s.w == 0) return cudaSuccess;
  switch (a.type) {
    case Type::float32: return dispatch_size<float>(a, start);
    case Type::float16: return dispatch_size<__half>(a, start);
    case Type::bfloat16: return dispatch_size<__nv_bfloat16>(a, start);
  }
  return cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace sparta
