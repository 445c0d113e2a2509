// How Sparta's work is divided among the threads of a GPU. Used by the kernels, their launch and their tests;
// robust_export.export.tensorrt.aot repeats the block counts in Python.
//
// A thread of the NCHW kernel computes `vector` columns of rows_per_thread(vector, k) rows of one channel. A thread of
// the NHWC8 kernel computes 8 channels of `columns_per_thread` columns of one row. Consecutive threads compute
// neighbouring columns (NCHW) or neighbouring channels (NHWC8), so that a warp's accesses are contiguous.

#pragma once

#if defined(__CUDACC_RTC__)  // NVRTC has no standard library
typedef long long int64_t;
#else
#include <cstdint>
#endif

#if defined(__CUDACC__)
#define SPARTA_HOST_DEVICE __host__ __device__
#else
#define SPARTA_HOST_DEVICE
#endif

namespace sparta {
namespace cuda {

constexpr int block_threads = 128;
constexpr int columns_per_thread = 2;  // of the NHWC8 kernel

SPARTA_HOST_DEVICE constexpr int rows_per_thread(int vector, int64_t k) { return vector == 8 || k > 3 ? 2 : 4; }

SPARTA_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// The second argument of __launch_bounds__: blocks that must fit on a multiprocessor at once, which limits a thread to
// 65536 / (128 * this) registers. No kernel spills within these limits. Without them the compiler may spill to get
// down to 64 registers.
SPARTA_HOST_DEVICE constexpr int nchw_min_blocks(int k) { return k <= 3 ? 5 : 1; }
SPARTA_HOST_DEVICE constexpr int nhwc8_min_blocks(bool add) { return add ? 2 : 3; }

// Elements per load or store of the NCHW kernel: 16 bytes if rows of `width` elements and all pointers are aligned to
// 16, else 4 bytes if they are aligned to 4, else one element. `alignment` is the largest power of two that divides
// all pointers.
SPARTA_HOST_DEVICE constexpr int vector_width(int64_t element_bytes, int64_t width, int64_t alignment) {
  return width * element_bytes % 16 == 0 && alignment >= 16  ? static_cast<int>(16 / element_bytes)
         : width * element_bytes % 4 == 0 && alignment >= 4 ? static_cast<int>(4 / element_bytes)
                                                            : 1;
}

// Threads for a tensor [n, c, h, w], and the blocks that hold so many threads.
SPARTA_HOST_DEVICE constexpr int64_t nchw_threads(int64_t n, int64_t c, int64_t h, int64_t w, int vector, int64_t k) {
  return n * c * ceil_div(h, rows_per_thread(vector, k)) * (w / vector);
}
SPARTA_HOST_DEVICE constexpr int64_t nhwc8_threads(int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * h * ceil_div(w, columns_per_thread) * ceil_div(c, 8);
}
SPARTA_HOST_DEVICE constexpr int64_t block_count(int64_t threads) { return ceil_div(threads, block_threads); }

}  // namespace cuda
}  // namespace sparta
