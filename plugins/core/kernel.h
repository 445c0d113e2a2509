// What one set of instructions offers: the kernels that sparta.cpp chooses among.

#pragma once

#include <cstddef>
#include <cstdint>

namespace sparta {

// Rows [begin, end) of one plane, or of `lanes` of them side by side.
struct Rows {
  const void* x;          // the plane's first row
  void* y;                // may be x
  int64_t height, width;  // of the plane
  int64_t begin, end;     // the rows to compute
  const void* above;      // the k / 2 rows before `begin`, as they were before anything was written
  const void* below;      // the k / 2 rows from `end` on, likewise; what lies outside the plane is not read
  const float* taps;      // [1 + k * k][lanes of the layout]: the bias, then the taps
  float* scratch;         // of scratch_floats()
};

// Small planes [C, H, W] of up to `lanes` channels, turned to [H, W, lanes] and back.
struct Planes {
  const void* x;
  void* y;
  int64_t count;  // of channels, at most `lanes`
  int64_t height, width;
  const float* taps;  // [1 + k * k][lanes]
  float* scratch;     // of planes_floats()
};

// One image [H, W, C] and its result, or the gradients of it.
struct Image {
  const float* x;
  const float* gradient;  // in y; null where y is asked for
  float* result;          // y, or the gradient in x
  float* gate;            // 2 sigmoid(w (*) x + b): written for y, where it is not null; read for the gradients
  float* of_taps;         // [C][1 + k * k], the gradients in the bias and the taps; null where they are not wanted
  int64_t height, width, channels;
  const float* taps;  // [ceil(C / lanes)][1 + k * k][lanes]
  float* scratch;     // of image_floats()
};

// One kernel for each k = 1, 3, 5, 7, at k / 2.
template <class Job>
struct Table {
  void (*of[4])(const Job&);
};

struct Kernels {
  const char* name;
  int64_t lanes;                          // floats in a vector
  Table<Rows> rows[3];                    // by Type
  Table<Planes> planes[3];                // by Type
  Table<Rows> blocked8, blocked16;        // rows of blocks of channels; null where lanes > block
  Table<Image> image, gradients;
  void (*exponential)(const float* x, float* y, size_t count);
};

// Rows of `width` elements of `block` channels are staged `scratch_batch` at a time, each on
// `scratch_pitch` floats: the row, zeros on both sides, and room for vectors that reach beyond the end.
constexpr int64_t largest_batch = 32;
constexpr int64_t scratch_batch(int64_t width, int64_t block) {
  const int64_t rows = 1024 / (width * block);
  return rows < 1 ? 1 : rows > largest_batch ? largest_batch : rows;
}
constexpr int64_t scratch_left(int64_t block, int64_t k) { return (k / 2 * block + 15) / 16 * 16; }
constexpr int64_t scratch_pitch(int64_t width, int64_t block, int64_t k) {
  return scratch_left(block, k) + (width * block + 15) / 16 * 16 + scratch_left(block, k) + 16;
}
constexpr int64_t scratch_floats(int64_t width, int64_t block, int64_t k) {
  return (k - 1 + scratch_batch(width, block)) * scratch_pitch(width, block, k);
}

// The same for small planes: the planes themselves, and their rows.
constexpr int64_t planes_floats(int64_t height, int64_t width, int64_t lanes, int64_t k) {
  return height * width * lanes + scratch_floats(width, lanes, k);
}

// Two planes of `lanes` channels, with their borders.
constexpr int64_t image_floats(int64_t height, int64_t width, int64_t lanes, int64_t k) {
  return 2 * (height + k - 1) * (width + k - 1) * lanes;
}

const Kernels& portable_kernels();
const Kernels* avx2_kernels();    // null where the compiler or the architecture has no such thing
const Kernels* avx512_kernels();  // likewise

}  // namespace sparta
