// Sparta on a GPU, one thread an element: a tile of a plane and its neighbours go to shared memory as
// float32, whatever the storage is, and every element is read from there k * k times.
//
// Nothing here but CUDA C++ that g++ compiles as well, given the few names of plugins/tests/cuda_on_cpu.h:
// the same source is run on a CPU under sanitizers. The launch is in cuda_launch.cu.

#pragma once

#include <cstdint>

namespace sparta {
namespace cuda {

constexpr int tile_width = 32, tile_height = 16, block_height = 8;  // a thread has two elements of a column

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline void narrow(float value, float* to) { *to = value; }
__device__ inline void narrow(float value, __half* to) { *to = __float2half_rn(value); }
__device__ inline void narrow(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

// relu(x) * (2 * sigmoid(attention)), as in kernel_impl.h; NaN stays.
__device__ inline float activate(float x, float attention) {
  const float t = expf(-fabsf(attention));
  const float gate = 2.0f / (1.0f + t);
  return (x < 0.0f ? 0.0f : x) * (attention < 0.0f ? gate * t : gate);
}

// x, y [planes, height, width], planes = N * C; weight [C, k, k]; bias [C]. y must not be x: blocks read
// what their neighbours write. One block of 32 x 8 threads for each tile; see tiles().
template <class T, int k>
__global__ void sparta_kernel(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                              T* __restrict__ y, int64_t channels, int64_t height, int64_t width) {
  constexpr int reach = k / 2;
  constexpr int rows = tile_height + 2 * reach, columns = tile_width + 2 * reach;
  __shared__ float tile[rows][columns];
  __shared__ float taps[k * k];

  const int64_t across = (width + tile_width - 1) / tile_width;
  const int64_t down = (height + tile_height - 1) / tile_height;
  const int64_t number = blockIdx.x;
  const int64_t plane = number / (across * down);
  const int64_t top = number / across % down * tile_height;
  const int64_t left = number % across * tile_width;
  const int64_t channel = plane % channels;
  const T* const from = x + plane * height * width;
  T* const to = y + plane * height * width;

  const int thread = static_cast<int>(threadIdx.y * tile_width + threadIdx.x);
  for (int i = thread; i < k * k; i += tile_width * block_height) taps[i] = widen(weight[channel * k * k + i]);
  for (int i = thread; i < rows * columns; i += tile_width * block_height) {
    const int64_t row = top + i / columns - reach, column = left + i % columns - reach;
    const bool inside = row >= 0 && row < height && column >= 0 && column < width;
    tile[i / columns][i % columns] = inside ? widen(from[row * width + column]) : 0.0f;
  }
  __syncthreads();

  const int column = static_cast<int>(threadIdx.x);
  const float own_bias = widen(bias[channel]);
  for (int row = static_cast<int>(threadIdx.y); row < tile_height; row += block_height) {
    if (top + row >= height || left + column >= width) continue;
    float attention = own_bias;
    for (int a = 0; a < k; ++a)
      for (int b = 0; b < k; ++b) attention += taps[a * k + b] * tile[row + a][column + b];
    narrow(activate(tile[row + reach][column + reach], attention), to + (top + row) * width + left + column);
  }
}

// How many blocks cover the planes.
constexpr int64_t tiles(int64_t planes, int64_t height, int64_t width) {
  return planes * ((height + tile_height - 1) / tile_height) * ((width + tile_width - 1) / tile_width);
}

}  // namespace cuda
}  // namespace sparta
