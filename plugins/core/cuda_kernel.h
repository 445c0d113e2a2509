// Sparta on a GPU: every element is read from memory once and written once. A thread keeps its outputs in
// registers and reads the rows around them; what its neighbours read too comes from the caches. There is no
// shared memory and no barrier, and threads write nothing in common.
//
// Nothing here but CUDA C++ that g++ compiles as well, given the few names of plugins/tests/cuda_on_cpu.h: the
// same source is run on a CPU under sanitizers. The includer has included cuda_fp16.h and cuda_bf16.h; the launch
// is in cuda_launch.cu. x, residual, weight, bias, y and the shape are those of sparta_cuda.h; y overlaps nothing.

#pragma once

#include "cuda_geometry.h"

namespace sparta {
namespace cuda {

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline void narrow(float value, float* to) { *to = value; }
__device__ inline void narrow(float value, __half* to) { *to = __float2half_rn(value); }
__device__ inline void narrow(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

// What one load or store moves.
template <class T, int count>
struct alignas(count * sizeof(T)) Pack {
  T at[count];
};
template <int count, class T>
__device__ inline Pack<T, count> load(const T* from) {
  return *reinterpret_cast<const Pack<T, count>*>(from);
}

// relu(x) * (2 * sigmoid(attention)), as in kernel_impl.h; NaN stays.
__device__ inline float activate(float x, float attention) {
  const float t = expf(-fabsf(attention));
  const float gate = 2.0f / (1.0f + t);
  return (x < 0.0f ? 0.0f : x) * (attention < 0.0f ? gate * t : gate);
}

// a / b for a >= 0, b > 0. 64-bit division is a subroutine on a GPU, and hardly ever needed.
__device__ inline int64_t quotient(int64_t a, int b) {
  return a >> 32 == 0 ? static_cast<int64_t>(static_cast<unsigned>(a) / static_cast<unsigned>(b)) : a / b;
}

// The nearest of [0, size): what lies outside is loaded from there and then counted as 0, so that loads need no
// branch and all of them are under way at once.
__device__ inline int inside(int i, int size) { return i < 0 ? 0 : i < size ? i : size - 1; }

__device__ inline int64_t thread_number() { return static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x; }

// [N, C, H, W]; w is a multiple of V, and pointers are aligned to V elements.
template <class T, int k, int V, bool add>
__device__ inline void planes(const T* __restrict__ x, const T* __restrict__ residual, const T* __restrict__ weight,
                              const T* __restrict__ bias, T* __restrict__ y, int n, int c, int h, int w) {
  constexpr int reach = k / 2, rows = rows_of(V, k);
  const int across = w / V, down = static_cast<int>(ceil_div(h, rows));
  const int64_t number = thread_number();
  if (number >= plane_threads(n, c, h, w, V, k)) return;
  const int64_t line = quotient(number, across);
  const int64_t plane = quotient(line, down);
  const int left = static_cast<int>(number - line * across) * V;
  const int top = static_cast<int>(line - plane * down) * rows;
  const int channel = static_cast<int>(plane - quotient(plane, c) * c);
  const int64_t start = plane * h * w;

  float taps[k * k];
#pragma unroll
  for (int t = 0; t < k * k; ++t) taps[t] = widen(weight[static_cast<int64_t>(channel) * k * k + t]);
  const float own_bias = widen(bias[channel]);
  float attention[rows][V], centre[rows][V];
#pragma unroll
  for (int o = 0; o < rows; ++o)
#pragma unroll
    for (int v = 0; v < V; ++v) attention[o][v] = own_bias;

#pragma unroll
  for (int i = 0; i < rows + 2 * reach; ++i) {
    const int row = top + i - reach;
    const int64_t from = start + static_cast<int64_t>(inside(row, h)) * w;
    const Pack<T, V> own = load<V>(x + from + left);
    Pack<T, V> own_residual = own;
    if constexpr (add) own_residual = load<V>(residual + from + left);
    float value[V + 2 * reach];
#pragma unroll
    for (int j = 0; j < V + 2 * reach; ++j) {
      const int column = left + j - reach;
      if (j >= reach && j < reach + V) {
        value[j] = widen(own.at[j - reach]);
        if constexpr (add) value[j] += widen(own_residual.at[j - reach]);
      } else {
        const int64_t at = from + inside(column, w);
        value[j] = widen(x[at]);
        if constexpr (add) value[j] += widen(residual[at]);
      }
      if (row < 0 || row >= h || column < 0 || column >= w) value[j] = 0.0f;
    }
#pragma unroll
    for (int o = 0; o < rows; ++o) {
      const int a = i - o;  // the row of taps through which output o sees this row
      if (a < 0 || a >= k) continue;
#pragma unroll
      for (int v = 0; v < V; ++v)
#pragma unroll
        for (int b = 0; b < k; ++b) attention[o][v] += taps[a * k + b] * value[v + b];
      if (a != reach) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) centre[o][v] = value[v + reach];
    }
  }

#pragma unroll
  for (int o = 0; o < rows; ++o) {
    if (top + o >= h) break;
    Pack<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) narrow(activate(centre[o][v], attention[o][v]), &result.at[v]);
    *reinterpret_cast<Pack<T, V>*>(y + start + static_cast<int64_t>(top + o) * w + left) = result;
  }
}

// [N, H, W, ceil(C / 8) * 8] of a half type; pointers but bias and weight are aligned to 16 bytes.
template <class T, int k, bool add>
__device__ inline void channels8(const T* __restrict__ x, const T* __restrict__ residual, const T* __restrict__ weight,
                                 const T* __restrict__ bias, T* __restrict__ y, int n, int c, int h, int w) {
  constexpr int reach = k / 2;
  const int groups = static_cast<int>(ceil_div(c, 8)), across = static_cast<int>(ceil_div(w, strip));
  const int64_t number = thread_number();
  if (number >= channel_threads(n, c, h, w)) return;
  const int64_t place = quotient(number, groups);
  const int64_t line = quotient(place, across);
  const int64_t image = quotient(line, h);
  const int channel = static_cast<int>(number - place * groups) * 8;
  const int left = static_cast<int>(place - line * across) * strip;
  const int own_row = static_cast<int>(line - image * h);
  const int64_t pitch = static_cast<int64_t>(groups) * 8;

  // A group's taps [8][k * k] lie side by side: k * k loads of 16 bytes.
  Pack<T, 8> taps[k * k];
  float attention[strip][8];
  const T* const own_weight = weight + static_cast<int64_t>(channel) * k * k;
  const bool whole = channel + 8 <= c;
  if (whole && reinterpret_cast<unsigned long long>(weight) % 16 == 0) {
#pragma unroll
    for (int t = 0; t < k * k; ++t) taps[t] = load<8>(own_weight + t * 8);
  } else {
#pragma unroll
    for (int t = 0; t < k * k * 8; ++t) {
      narrow(0.0f, &taps[t / 8].at[t % 8]);
      if (channel + t / (k * k) < c) taps[t / 8].at[t % 8] = own_weight[t];
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float own_bias = channel + j < c ? widen(bias[channel + j]) : 0.0f;
#pragma unroll
    for (int o = 0; o < strip; ++o) attention[o][j] = own_bias;
  }

  Pack<T, 8> centre[strip], centre_residual[strip];
#pragma unroll
  for (int a = 0; a < k; ++a) {
    const int row = own_row + a - reach;
    const int64_t from = (image * h + inside(row, h)) * w;
#pragma unroll
    for (int i = 0; i < strip + 2 * reach; ++i) {
      const int column = left + i - reach;
      const int64_t at = (from + inside(column, w)) * pitch + channel;
      const Pack<T, 8> own = load<8>(x + at);
      Pack<T, 8> own_residual = own;
      if constexpr (add) own_residual = load<8>(residual + at);
      if (a == reach && i >= reach && i < reach + strip) {
        centre[i - reach] = own;
        centre_residual[i - reach] = own_residual;
      }
      const bool outside = row < 0 || row >= h || column < 0 || column >= w;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float value = widen(own.at[j]);
        if constexpr (add) value += widen(own_residual.at[j]);
        if (outside) value = 0.0f;
#pragma unroll
        for (int o = 0; o < strip; ++o) {
          const int b = i - o;
          if (b < 0 || b >= k) continue;
          const int t = j * k * k + a * k + b;
          attention[o][j] += widen(taps[t / 8].at[t % 8]) * value;
        }
      }
    }
  }

#pragma unroll
  for (int o = 0; o < strip; ++o) {
    if (left + o >= w) break;
    Pack<T, 8> result;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float value = widen(centre[o].at[j]);
      if constexpr (add) value += widen(centre_residual[o].at[j]);
      narrow(channel + j < c ? activate(value, attention[o][j]) : 0.0f, &result.at[j]);
    }
    *reinterpret_cast<Pack<T, 8>*>(y + ((image * h + own_row) * w + left + o) * pitch + channel) = result;
  }
}

}  // namespace cuda
}  // namespace sparta
