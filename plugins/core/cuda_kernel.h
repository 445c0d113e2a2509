// Sparta on a GPU. Every element is read from global memory once and written once: a thread keeps its outputs in
// registers and reads the rows around them, and what neighbouring threads read too comes from the caches. There is no
// shared memory and no barrier, and no two threads write the same element.
//
// g++ compiles this file too, given the CUDA names that plugins/tests/cuda_on_cpu.h defines: the same source runs on a
// CPU under sanitizers. Include cuda_fp16.h and cuda_bf16.h before it. The launch is in cuda_launch.cu. x, residual,
// weight, bias, y and the shape are those of sparta_cuda.h; y overlaps no other tensor.

#pragma once

#include "cuda_geometry.h"

namespace sparta {
namespace cuda {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline void store_rounded(float value, float* to) { *to = value; }
__device__ inline void store_rounded(float value, __half* to) { *to = __float2half_rn(value); }
__device__ inline void store_rounded(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

// The elements that one load or store moves.
template <class T, int count>
struct alignas(count * sizeof(T)) Pack {
  T values[count];
};
template <int count, class T>
__device__ inline Pack<T, count> load(const T* from) {
  return *reinterpret_cast<const Pack<T, count>*>(from);
}

// Return relu(x) * (2 * sigmoid(preactivation)), computed as in kernel_impl.h; NaN for NaN.
__device__ inline float activate(float x, float preactivation) {
  const float t = expf(-fabsf(preactivation));
  const float gate = 2.0f / (1.0f + t);
  return (x < 0.0f ? 0.0f : x) * (preactivation < 0.0f ? gate * t : gate);
}

// Return a / b for a >= 0, b > 0, in 32 bits if a fits: a GPU divides 64-bit integers in a slow subroutine.
__device__ inline int64_t divide(int64_t a, int b) {
  return a >> 32 == 0 ? static_cast<int64_t>(static_cast<unsigned>(a) / static_cast<unsigned>(b)) : a / b;
}

// Clamp an index to [0, size). Elements outside the feature map are loaded from the nearest one inside and replaced by
// 0 afterwards: loads without branches can all be in flight at once.
__device__ inline int clamp_index(int i, int size) { return i < 0 ? 0 : i < size ? i : size - 1; }

__device__ inline int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x; }

// Compute Sparta in the layout [N, C, H, W]. w is a multiple of V, and x, residual and y are aligned to V elements.
template <class T, int k, int V, bool add>
__device__ inline void forward_nchw(const T* __restrict__ x, const T* __restrict__ residual,
                                    const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y, int n,
                                    int c, int h, int w) {
  constexpr int padding = k / 2, rows = rows_per_thread(V, k);
  const int threads_across = w / V, threads_down = static_cast<int>(ceil_div(h, rows));
  const int64_t thread = thread_index();
  if (thread >= nchw_threads(n, c, h, w, V, k)) return;
  const int64_t strip = divide(thread, threads_across);
  const int64_t map = divide(strip, threads_down);
  const int left = static_cast<int>(thread - strip * threads_across) * V;
  const int top = static_cast<int>(strip - map * threads_down) * rows;
  const int channel = static_cast<int>(map - divide(map, c) * c);
  const int64_t map_start = map * h * w;

  float weights[k * k];
#pragma unroll
  for (int t = 0; t < k * k; ++t) weights[t] = to_float(weight[static_cast<int64_t>(channel) * k * k + t]);
  const float channel_bias = to_float(bias[channel]);
  float preactivation[rows][V], centre[rows][V];
#pragma unroll
  for (int o = 0; o < rows; ++o)
#pragma unroll
    for (int v = 0; v < V; ++v) preactivation[o][v] = channel_bias;

#pragma unroll
  for (int i = 0; i < rows + 2 * padding; ++i) {
    const int row = top + i - padding;
    const int64_t row_start = map_start + static_cast<int64_t>(clamp_index(row, h)) * w;
    const Pack<T, V> x_pack = load<V>(x + row_start + left);
    Pack<T, V> residual_pack = x_pack;
    if constexpr (add) residual_pack = load<V>(residual + row_start + left);
    float value[V + 2 * padding];
#pragma unroll
    for (int j = 0; j < V + 2 * padding; ++j) {
      const int column = left + j - padding;
      if (j >= padding && j < padding + V) {
        value[j] = to_float(x_pack.values[j - padding]);
        if constexpr (add) value[j] += to_float(residual_pack.values[j - padding]);
      } else {
        const int64_t offset = row_start + clamp_index(column, w);
        value[j] = to_float(x[offset]);
        if constexpr (add) value[j] += to_float(residual[offset]);
      }
      if (row < 0 || row >= h || column < 0 || column >= w) value[j] = 0.0f;
    }
#pragma unroll
    for (int o = 0; o < rows; ++o) {
      const int a = i - o;  // the row of weights that applies to this input row for output row o
      if (a < 0 || a >= k) continue;
#pragma unroll
      for (int v = 0; v < V; ++v)
#pragma unroll
        for (int b = 0; b < k; ++b) preactivation[o][v] += weights[a * k + b] * value[v + b];
      if (a != padding) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) centre[o][v] = value[v + padding];
    }
  }

#pragma unroll
  for (int o = 0; o < rows; ++o) {
    if (top + o >= h) break;
    Pack<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) store_rounded(activate(centre[o][v], preactivation[o][v]), &result.values[v]);
    *reinterpret_cast<Pack<T, V>*>(y + map_start + static_cast<int64_t>(top + o) * w + left) = result;
  }
}

// Compute Sparta in the layout [N, H, W, ceil(C / 8) * 8] for a 16-bit type. x, residual and y are aligned to 16 bytes.
template <class T, int k, bool add>
__device__ inline void forward_nhwc8(const T* __restrict__ x, const T* __restrict__ residual,
                                     const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y, int n,
                                     int c, int h, int w) {
  constexpr int padding = k / 2, columns = columns_per_thread;
  const int groups = static_cast<int>(ceil_div(c, 8)), threads_across = static_cast<int>(ceil_div(w, columns));
  const int64_t thread = thread_index();
  if (thread >= nhwc8_threads(n, c, h, w)) return;
  const int64_t strip = divide(thread, groups);
  const int64_t line = divide(strip, threads_across);
  const int64_t image = divide(line, h);
  const int channel = static_cast<int>(thread - strip * groups) * 8;
  const int left = static_cast<int>(strip - line * threads_across) * columns;
  const int output_row = static_cast<int>(line - image * h);
  const int64_t pitch = static_cast<int64_t>(groups) * 8;

  // The weights [8][k * k] of a group of channels are contiguous: k * k loads of 16 bytes.
  Pack<T, 8> weights[k * k];
  float preactivation[columns][8];
  const T* const group_weight = weight + static_cast<int64_t>(channel) * k * k;
  const bool full_group = channel + 8 <= c;
  if (full_group && reinterpret_cast<unsigned long long>(weight) % 16 == 0) {
#pragma unroll
    for (int t = 0; t < k * k; ++t) weights[t] = load<8>(group_weight + t * 8);
  } else {
#pragma unroll
    for (int t = 0; t < k * k * 8; ++t) {
      store_rounded(0.0f, &weights[t / 8].values[t % 8]);
      if (channel + t / (k * k) < c) weights[t / 8].values[t % 8] = group_weight[t];
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float channel_bias = channel + j < c ? to_float(bias[channel + j]) : 0.0f;
#pragma unroll
    for (int o = 0; o < columns; ++o) preactivation[o][j] = channel_bias;
  }

  Pack<T, 8> centre[columns], centre_residual[columns];
#pragma unroll
  for (int a = 0; a < k; ++a) {
    const int row = output_row + a - padding;
    const int64_t row_start = (image * h + clamp_index(row, h)) * w;
#pragma unroll
    for (int i = 0; i < columns + 2 * padding; ++i) {
      const int column = left + i - padding;
      const int64_t offset = (row_start + clamp_index(column, w)) * pitch + channel;
      const Pack<T, 8> x_pack = load<8>(x + offset);
      Pack<T, 8> residual_pack = x_pack;
      if constexpr (add) residual_pack = load<8>(residual + offset);
      if (a == padding && i >= padding && i < padding + columns) {
        centre[i - padding] = x_pack;
        centre_residual[i - padding] = residual_pack;
      }
      const bool outside = row < 0 || row >= h || column < 0 || column >= w;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float value = to_float(x_pack.values[j]);
        if constexpr (add) value += to_float(residual_pack.values[j]);
        if (outside) value = 0.0f;
#pragma unroll
        for (int o = 0; o < columns; ++o) {
          const int b = i - o;
          if (b < 0 || b >= k) continue;
          const int t = j * k * k + a * k + b;
          preactivation[o][j] += to_float(weights[t / 8].values[t % 8]) * value;
        }
      }
    }
  }

#pragma unroll
  for (int o = 0; o < columns; ++o) {
    if (left + o >= w) break;
    Pack<T, 8> result;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float value = to_float(centre[o].values[j]);
      if constexpr (add) value += to_float(centre_residual[o].values[j]);
      store_rounded(channel + j < c ? activate(value, preactivation[o][j]) : 0.0f, &result.values[j]);
    }
    *reinterpret_cast<Pack<T, 8>*>(y + ((image * h + output_row) * w + left + o) * pitch + channel) = result;
  }
}

}  // namespace cuda
}  // namespace sparta
