// The kernels, written once for vectors of SPARTA_LANES floats. kernel_<instructions>.cpp includes this file with
// its own compiler flags. Everything is in an anonymous namespace and no function of the standard library is used:
// otherwise the linker could replace a function that every CPU can run by one compiled for AVX-512.

#include <stddef.h>
#include <stdint.h>

#include "kernel.h"
#include "vectors.h"

namespace sparta {
namespace {

// ---- the gate -------------------------------------------------------------------------------------

// exp(x) = 2^n * fraction with n = round(x / ln 2). The low bits of `shifted` hold the integer n + offset.
struct Exponential {
  Floats shifted, n, fraction;
};

// Split exp(x). With the remainder |r| <= ln 2 / 2, exp(r) = 1 + r + r^2 q(r), where q is the minimax polynomial of
// degree 3 (relative error of exp(r): 2^-23.2). ln 2 is split into two constants so that n times the first is exact.
template <int offset>
SPARTA_INLINE Exponential split_exponential(Floats x) {
  const Floats magic = broadcast(0x1.8p23f + offset);
  const Floats shifted = x * broadcast(0x1.715476p+0f) + magic;
  const Floats n = shifted - magic;
  const Floats r = (x - n * broadcast(0x1.62e4p-1f)) - n * broadcast(0x1.7f7d1cp-20f);
  Floats q = broadcast(0x1.106252p-7f);
  q = q * r + broadcast(0x1.572a64p-5f);
  q = q * r + broadcast(0x1.5557b0p-3f);
  q = q * r + broadcast(0x1.fffdfcp-2f);
  return {shifted, n, (q * (r * r) + r) + 1.0f};
}

// Return exp(x) for x <= 89, NaN for NaN.
SPARTA_INLINE Floats exponential_below_89(Floats x) {
  x = max_or_second(broadcast(-104.0f), x);  // exp(-104) is 0 in float32
  const Exponential e = split_exponential<0>(x);
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)e.fraction, (__m512)e.n);
#else
  // Multiply by 2^n in two factors, because n is between -150 and 128.
  const Ints n = reinterpret_cast<Ints>(e.shifted) - reinterpret_cast<Ints>(broadcast(0x1.8p23f));
  const Ints half = n >> 1;
  const Floats first = reinterpret_cast<Floats>((half + 127) << 23);
  const Floats second = reinterpret_cast<Floats>((n - half + 127) << 23);
  return e.fraction * first * second;
#endif
}

SPARTA_INLINE Floats exponential(Floats x) {
  x = -max_or_second(broadcast(-89.0f), -x);  // exp(89) is infinite in float32
  return exponential_below_89(x);
}

// Return 2 / (1 + t) for t in [0, 1], NaN for NaN; exactly 1 for t = 1.
SPARTA_INLINE Floats twice_reciprocal(Floats t) {
  return 2.0f / (t + 1.0f);
}

// Return 2 * sigmoid(a).
SPARTA_INLINE Floats compute_gate(Floats a) {
  // sigmoid(a) is 1 / (1 + t) for a >= 0 and t / (1 + t) for a < 0, where t = exp(-|a|) never overflows.
  const Ints minus_abs = reinterpret_cast<Ints>(a) | INT32_MIN;
  const Floats t = exponential_below_89(reinterpret_cast<Floats>(minus_abs));
  const Floats gate = twice_reciprocal(t);
  return (a < Floats{}) ? gate * t : gate;
}

// Return relu(x) * (2 * sigmoid(preactivation)). The gate is doubled and not x, which could overflow.
SPARTA_INLINE Floats activate(Floats x, Floats preactivation) {
  return max_or_second(Floats{}, x) * compute_gate(preactivation);
}

// ---- rows -----------------------------------------------------------------------------------------

// Copy a row to scratch as floats. A null row means a row of zeros. The zeros on both sides are there already.
template <class T>
SPARTA_INLINE void stage_row(const T* row, float* to, int64_t count) {
  int64_t i = 0;
  if (row == nullptr) {
    for (; i + lanes <= count; i += lanes) store(to + i, Floats{});
    for (; i < count; ++i) to[i] = 0.0f;
    return;
  }
  for (; i + lanes <= count; i += lanes) store(to + i, load(row + i));
  if (i == count) return;
  if (count >= lanes) {
    store(to + count - lanes, load(row + count - lanes));  // overlaps the vector before it
  } else {
    store_first(to, load_first(row, count), count);
  }
}

// The bias and weight of one channel (step = 1), or of a block of `step` channels, as vectors. They are read into
// registers once: without this copy the compiler must assume that writing y changes them.
template <int k, int step>
struct WeightVectors {
  static constexpr int groups = step > lanes ? step / lanes : 1;  // vectors per block
  Floats bias[groups], weight[groups][k * k];

  explicit SPARTA_INLINE WeightVectors(const float* from) {
    for (int group = 0; group < groups; ++group) {
      bias[group] = step == 1 ? broadcast(from[0]) : load_group(from, group);
      for (int t = 0; t < k * k; ++t)
        weight[group][t] = step == 1 ? broadcast(from[1 + t]) : load_group(from + (1 + t) * step, group);
    }
  }
  static SPARTA_INLINE Floats load_group(const float* from, int group) {
    return step == 1 ? Floats{} : load(from + group * lanes);
  }
};

// Compute one row of y. staged[j] is input row i + j - k / 2 with zeros on both sides, for output row i. `step` is
// the distance of horizontal neighbours: 1, or the channels of a block. `prefetch` is an address read soon.
template <class T, int k, int step>
SPARTA_INLINE void compute_row(const float* const* staged, T* y, uintptr_t prefetch, int64_t count,
                               const WeightVectors<k, step>& weights) {
  constexpr int middle = k / 2;
  constexpr int groups = WeightVectors<k, step>::groups;
  for (int group = 0; group < groups; ++group) {
    const auto result_at = [&](int64_t i) __attribute__((always_inline)) {
      Floats preactivation = weights.bias[group];
      for (int row = 0; row < k; ++row)
        for (int column = 0; column < k; ++column)
          preactivation +=
              weights.weight[group][row * k + column] * load(staged[row] + i + (column - middle) * step);
      return activate(load(staged[middle] + i), preactivation);
    };
    int64_t i = group * lanes;
    for (; i + lanes <= count; i += groups * lanes) {
      __builtin_prefetch(reinterpret_cast<const void*>(prefetch + i * sizeof(T)));
      store(y + i, result_at(i));
    }
    if (step == 1 && i < count) {
      if (count >= lanes) {
        store(y + count - lanes, result_at(count - lanes));  // overlaps the vector before it
      } else {
        store_first(y, result_at(0), count);
      }
    }
  }
}

template <class T, int k, int step>
void forward_rows(const RowsArgs& args) {
  constexpr int64_t padding = k / 2;
  const int64_t count = args.width * step;
  const int64_t pitch = row_pitch(args.width, step, k);
  // Short rows are staged several at a time: a vector load that spans rows written just before would stall until
  // the stores have completed.
  const int64_t max_batch = staged_rows(args.width, step), rows = args.end - args.begin;
  const int64_t batch = rows < max_batch ? rows : max_batch;
  float* slots[k - 1 + max_staged_rows];
  for (int64_t j = 0; j < k - 1 + batch; ++j) {
    slots[j] = args.scratch + j * pitch + row_padding(step, k);
    for (int64_t i = 0; i < padding * step; ++i) slots[j][-1 - i] = slots[j][count + i] = 0.0f;
  }
  const WeightVectors<k, step> weights(args.weights);
  const T* const x = static_cast<const T*>(args.x);
  const auto input_row = [&](int64_t i) -> const T* {
    if (i < 0 || i >= args.height) return nullptr;
    if (i < args.begin) return static_cast<const T*>(args.above) + (i - args.begin + padding) * count;
    if (i >= args.end) return static_cast<const T*>(args.below) + (i - args.end) * count;
    return x + i * count;
  };
  for (int64_t j = 0; j + 1 < k; ++j) stage_row(input_row(args.begin - padding + j), slots[j], count);
  for (int64_t first = args.begin; first < args.end; first += batch) {
    const int64_t size = args.end - first < batch ? args.end - first : batch;
    for (int64_t j = 0; j < size; ++j)
      stage_row(input_row(first + padding + j), slots[k - 1 + j], count);
    for (int64_t j = 0; j < size; ++j) {
      const int64_t i = first + j;
      // The row that is staged one batch later, often of the next feature map, which this thread computes next. An
      // integer and not a pointer, because it may lie outside x; prefetching such an address does nothing.
      const uintptr_t prefetch = reinterpret_cast<uintptr_t>(x) + (i + padding + batch) * count * sizeof(T);
      compute_row<T, k, step>(slots + j, static_cast<T*>(args.y) + i * count, prefetch, count, weights);
    }
    float* used[max_staged_rows];
    for (int64_t j = 0; j < size; ++j) used[j] = slots[j];
    for (int64_t j = 0; j < k - 1; ++j) slots[j] = slots[size + j];
    for (int64_t j = 0; j < size; ++j) slots[k - 1 + j] = used[j];
  }
}

// ---- small feature maps -----------------------------------------------------------------------------

template <class T, int k>
void forward_small_maps(const SmallMapsArgs& args) {
  const int64_t size = args.height * args.width;
  float* const transposed = args.scratch;
  const T* const x = static_cast<const T*>(args.x);
  T* const y = static_cast<T*>(args.y);
  Floats v[lanes];
  // The last chunk overlaps the one before it, so that all chunks have the same number of elements.
  const int64_t last = size < lanes ? 0 : size - lanes;
  const int64_t chunk = size < lanes ? size : lanes;
  for (int64_t i = 0; i < size; i += lanes) {
    const int64_t start = i < last ? i : last;
    for (int c = 0; c < lanes; ++c) v[c] = c < args.channels ? load_first(x + c * size + start, chunk) : Floats{};
    transpose(v);
    for (int64_t j = 0; j < chunk; ++j) store(transposed + (start + j) * lanes, v[j]);
  }
  forward_rows<float, k, lanes>({transposed, transposed, args.height, args.width, 0, args.height, nullptr, nullptr,
                                 args.weights, transposed + size * lanes});
  for (int64_t i = 0; i < size; i += lanes) {
    const int64_t start = i < last ? i : last;
    for (int64_t j = 0; j < lanes; ++j) v[j] = j < chunk ? load(transposed + (start + j) * lanes) : Floats{};
    transpose(v);
    for (int c = 0; c < args.channels; ++c) store_first(y + c * size + start, v[c], chunk);
  }
}

}  // namespace
}  // namespace sparta

#include "image_impl.h"

namespace sparta {
namespace {

void exponential_array(const float* x, float* y, size_t count) {
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) store(y + i, exponential(load(x + i)));
  if (i < count) {
    const int64_t rest = static_cast<int64_t>(count - i);
    store_first(y + i, exponential(load_first(x + i, rest)), rest);
  }
}

template <class T>
constexpr auto rows_kernels =
    BySize<RowsArgs>{{forward_rows<T, 1, 1>, forward_rows<T, 3, 1>, forward_rows<T, 5, 1>, forward_rows<T, 7, 1>}};
template <class T>
constexpr auto small_maps_kernels = BySize<SmallMapsArgs>{
    {forward_small_maps<T, 1>, forward_small_maps<T, 3>, forward_small_maps<T, 5>, forward_small_maps<T, 7>}};
template <int block>
constexpr BySize<RowsArgs> block_kernels() {
  if constexpr (lanes <= block) {
    return {{forward_rows<float, 1, block>, forward_rows<float, 3, block>, forward_rows<float, 5, block>,
             forward_rows<float, 7, block>}};
  } else {
    return {{nullptr, nullptr, nullptr, nullptr}};
  }
}

constexpr auto forward_image_kernels =
    BySize<ImageArgs>{{forward_image<1>, forward_image<3>, forward_image<5>, forward_image<7>}};
constexpr auto backward_image_kernels =
    BySize<ImageArgs>{{backward_image<1>, backward_image<3>, backward_image<5>, backward_image<7>}};

constexpr Kernels kernels = {
    SPARTA_NAME,
    lanes,
    {rows_kernels<float>, rows_kernels<Float16>, rows_kernels<Bfloat16>},
    {small_maps_kernels<float>, small_maps_kernels<Float16>, small_maps_kernels<Bfloat16>},
    block_kernels<8>(),
    block_kernels<16>(),
    forward_image_kernels,
    backward_image_kernels,
    exponential_array,
};

}  // namespace
}  // namespace sparta
