// The interface between sparta.cpp and the kernels of one instruction set.

#pragma once

#include <cstddef>
#include <cstdint>

namespace sparta {

// Arguments of a kernel that computes rows [begin, end) of one feature map, or of one block of feature maps
// stored side by side ([H, W, block]).
struct RowsArgs {
  const void* x;          // the first row of the feature map
  void* y;                // may be x
  int64_t height, width;  // of the feature map
  int64_t begin, end;     // the rows to compute
  const void* above;      // the k / 2 rows before `begin`, unmodified; rows outside the feature map are not read
  const void* below;      // the k / 2 rows from `end` on, unmodified; likewise
  const float* weights;   // [1 + k * k][block]: the bias, then the weight
  float* scratch;         // rows_scratch_floats() floats
};

// Arguments of a kernel for up to `lanes` small feature maps [C, H, W], which are transposed to [H, W, lanes].
struct SmallMapsArgs {
  const void* x;
  void* y;
  int64_t channels;  // at most `lanes`
  int64_t height, width;
  const float* weights;  // [1 + k * k][lanes]
  float* scratch;        // small_maps_scratch_floats() floats
};

// Arguments of the kernels for one image [H, W, C], forward and backward.
struct ImageArgs {
  const float* x;
  const float* grad_y;  // null for forward
  float* result;        // y, or grad_x
  float* gate;          // 2 * sigmoid(w (*) x + b): written by forward unless null, read by backward
  float* grad_params;   // [C][1 + k * k], grad_bias, then grad_weight; null if not needed
  int64_t height, width, channels;
  const float* weights;  // [ceil(C / lanes)][1 + k * k][lanes]
  float* scratch;        // image_scratch_floats() floats
};

// One kernel for each of k = 1, 3, 5, 7, at index k / 2.
template <class Args>
struct BySize {
  void (*kernel[4])(const Args&);
};

// All kernels of one instruction set.
struct Kernels {
  const char* name;
  int64_t lanes;                                // floats in a vector
  BySize<RowsArgs> rows[3];                     // by Type
  BySize<SmallMapsArgs> small_maps[3];          // by Type
  BySize<RowsArgs> rows_block8, rows_block16;   // for the blocked layout; null where lanes > block
  BySize<ImageArgs> forward_image, backward_image;
  void (*exponential)(const float* x, float* y, size_t count);
};

// Rows of `width` * `block` elements are copied to scratch `staged_rows` at a time, one every `row_pitch` floats:
// zeros, the row, zeros, and room for a vector that ends beyond them.
constexpr int64_t max_staged_rows = 32;
constexpr int64_t staged_rows(int64_t width, int64_t block) {
  const int64_t rows = 1024 / (width * block);
  return rows < 1 ? 1 : rows > max_staged_rows ? max_staged_rows : rows;
}
constexpr int64_t row_padding(int64_t block, int64_t k) { return (k / 2 * block + 15) / 16 * 16; }
constexpr int64_t row_pitch(int64_t width, int64_t block, int64_t k) {
  return row_padding(block, k) + (width * block + 15) / 16 * 16 + row_padding(block, k) + 16;
}
constexpr int64_t rows_scratch_floats(int64_t width, int64_t block, int64_t k) {
  return (k - 1 + staged_rows(width, block)) * row_pitch(width, block, k);
}

// The transposed feature maps and their staged rows.
constexpr int64_t small_maps_scratch_floats(int64_t height, int64_t width, int64_t lanes, int64_t k) {
  return height * width * lanes + rows_scratch_floats(width, lanes, k);
}

// Two zero-padded feature maps of `lanes` channels.
constexpr int64_t image_scratch_floats(int64_t height, int64_t width, int64_t lanes, int64_t k) {
  return 2 * (height + k - 1) * (width + k - 1) * lanes;
}

const Kernels& portable_kernels();
const Kernels* avx2_kernels();    // null if the compiler or the architecture does not have AVX2
const Kernels* avx512_kernels();  // likewise for AVX-512

}  // namespace sparta
