// How Sparta's work is laid over the threads of a GPU: the kernels, their launch and their tests agree on it here.
//
// A thread of the kernel for planes has `vector` columns of rows_of(vector, k) rows, one of that for channels8 has
// 8 channels of `strip` columns of a row. Threads are counted along rows first: neighbours read neighbours.

#pragma once

#if defined(__CUDACC_RTC__)  // NVRTC has no standard library
typedef long long int64_t;
#else
#include <cstdint>
#endif

#if defined(__CUDACC__)
#define SPARTA_BOTH __host__ __device__
#else
#define SPARTA_BOTH
#endif

namespace sparta {
namespace cuda {

constexpr int block_threads = 128;
constexpr int strip = 2;

SPARTA_BOTH constexpr int rows_of(int vector, int64_t k) { return vector == 8 || k > 3 ? 2 : 4; }

SPARTA_BOTH constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Blocks that a multiprocessor is to hold at once, at least: a bound on registers of 65536 / (128 * this), under
// which no kernel spills. Without one, the compiler may spill to get down to 64.
SPARTA_BOTH constexpr int plane_blocks_resident(int k) { return k <= 3 ? 5 : 1; }
SPARTA_BOTH constexpr int channel_blocks_resident(bool add) { return add ? 2 : 3; }

// Elements of one access: 16 bytes where rows of `width` elements and all pointers are aligned to them, else as
// many as a float, and else one. `alignment` is the largest power of two that divides all pointers.
SPARTA_BOTH constexpr int vector_of(int64_t element_bytes, int64_t width, int64_t alignment) {
  return width * element_bytes % 16 == 0 && alignment >= 16  ? static_cast<int>(16 / element_bytes)
         : width * element_bytes % 4 == 0 && alignment >= 4 ? static_cast<int>(4 / element_bytes)
                                                            : 1;
}

// Threads that [n, c, h, w] needs, in either layout, and blocks of them.
SPARTA_BOTH constexpr int64_t plane_threads(int64_t n, int64_t c, int64_t h, int64_t w, int vector, int64_t k) {
  return n * c * ceil_div(h, rows_of(vector, k)) * (w / vector);
}
SPARTA_BOTH constexpr int64_t channel_threads(int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * h * ceil_div(w, strip) * ceil_div(c, 8);
}
SPARTA_BOTH constexpr int64_t blocks_of(int64_t threads) { return ceil_div(threads, block_threads); }

}  // namespace cuda
}  // namespace sparta
