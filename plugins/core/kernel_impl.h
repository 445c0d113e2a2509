// The mathematics, once, in vectors of SPARTA_LANES floats. kernel_<instructions>.cpp includes this with
// its own compiler flags; all of it is in an anonymous namespace, and no function of the standard library
// is used, so that no linker can take one compiled for AVX-512 for one that every CPU can run.

#include <stddef.h>
#include <stdint.h>

#include "kernel.h"
#include "vectors.h"

namespace sparta {
namespace {

// ---- the function ---------------------------------------------------------------------------------

// exp(x) = 2^n * fraction, n = round(x / ln 2); `shifted` has n + offset, an integer, at the end of its bits.
struct Exponential {
  Floats shifted, n, fraction;
};

// With |r| <= ln 2 / 2 as the rest, exp(r) = 1 + r + r^2 q(r), where q is the minimax polynomial of degree 3 (relative
// error of exp(r): 2^-23.2). ln 2 is split in two, so that n times the first is exact.
template <int offset>
SPARTA_INLINE Exponential split_exponential(Floats x) {
  const Floats magic = all(0x1.8p23f + offset);
  const Floats shifted = x * all(0x1.715476p+0f) + magic;
  const Floats n = shifted - magic;
  const Floats r = (x - n * all(0x1.62e4p-1f)) - n * all(0x1.7f7d1cp-20f);
  Floats q = all(0x1.106252p-7f);
  q = q * r + all(0x1.572a64p-5f);
  q = q * r + all(0x1.5557b0p-3f);
  q = q * r + all(0x1.fffdfcp-2f);
  return {shifted, n, (q * (r * r) + r) + 1.0f};
}

// exp(x) for x <= 89, NaN for NaN.
SPARTA_INLINE Floats exponential_below_89(Floats x) {
  x = larger(all(-104.0f), x);  // the result is 0 below
  const Exponential e = split_exponential<0>(x);
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)e.fraction, (__m512)e.n);
#else
  // 2^n in two factors, since n reaches from -150 to 128.
  const Ints whole = reinterpret_cast<Ints>(e.shifted) - reinterpret_cast<Ints>(all(0x1.8p23f));
  const Ints half = whole >> 1;
  const Floats first = reinterpret_cast<Floats>((half + 127) << 23);
  const Floats second = reinterpret_cast<Floats>((whole - half + 127) << 23);
  return e.fraction * first * second;
#endif
}

SPARTA_INLINE Floats exponential(Floats x) {
  x = -larger(all(-89.0f), -x);  // the result is infinite above
  return exponential_below_89(x);
}

// 2 / (1 + t) for t in [0, 1], NaN for NaN; exactly 1 for t = 1.
SPARTA_INLINE Floats twice_reciprocal(Floats t) {
  return 2.0f / (t + 1.0f);
}

// 2 * sigmoid(attention)
SPARTA_INLINE Floats gate_of(Floats attention) {
  // sigmoid(a) = 1 / (1 + t) for a >= 0 and t / (1 + t) for a < 0, where t = exp(-|a|) overflows nowhere.
  const Ints sign = reinterpret_cast<Ints>(attention) | INT32_MIN;
  const Floats t = exponential_below_89(reinterpret_cast<Floats>(sign));
  const Floats gate = twice_reciprocal(t);
  return (attention < Floats{}) ? gate * t : gate;
}

// relu(x) * (2 * sigmoid(attention)); the gate is doubled, not x, which could overflow.
SPARTA_INLINE Floats activate(Floats x, Floats attention) {
  return larger(Floats{}, x) * gate_of(attention);
}

// ---- rows -----------------------------------------------------------------------------------------

// A row into scratch, as floats, between zeros that are there already; null stands for a row of zeros.
template <class T>
SPARTA_INLINE void stage(const T* row, float* to, int64_t count) {
  int64_t i = 0;
  if (row == nullptr) {
    for (; i + lanes <= count; i += lanes) store(to + i, Floats{});
    for (; i < count; ++i) to[i] = 0.0f;
    return;
  }
  for (; i + lanes <= count; i += lanes) store(to + i, load(row + i));
  if (i == count) return;
  if (count >= lanes) {
    store(to + count - lanes, load(row + count - lanes));  // some of them twice
  } else {
    store_up_to(to, load_up_to(row, count), count);
  }
}

// The bias and the taps of one plane, or of a block of them, in vectors: read once, since nothing tells the
// compiler that writing y leaves them alone.
template <int k, int step>
struct Taps {
  static constexpr int groups = step > lanes ? step / lanes : 1;
  Floats bias[groups], tap[groups][k * k];

  explicit SPARTA_INLINE Taps(const float* from) {
    for (int group = 0; group < groups; ++group) {
      bias[group] = step == 1 ? all(from[0]) : load_block(from, group);
      for (int t = 0; t < k * k; ++t)
        tap[group][t] = step == 1 ? all(from[1 + t]) : load_block(from + (1 + t) * step, group);
    }
  }
  static SPARTA_INLINE Floats load_block(const float* from, int group) {
    return step == 1 ? Floats{} : load(from + group * lanes);
  }
};

// One row of results. staged[j] is the row j - k/2 below it, between zeros; `step` is the
// distance of neighbours: 1, or the channels of a block. What is at `next` is wanted soon.
template <class T, int k, int step>
SPARTA_INLINE void compute(const float* const* staged, T* y, uintptr_t next, int64_t count,
                           const Taps<k, step>& taps) {
  constexpr int middle = k / 2;
  constexpr int groups = Taps<k, step>::groups;
  for (int group = 0; group < groups; ++group) {
    const auto at = [&](int64_t i) __attribute__((always_inline)) {
      Floats attention = taps.bias[group];
      for (int row = 0; row < k; ++row)
        for (int column = 0; column < k; ++column)
          attention += taps.tap[group][row * k + column] * load(staged[row] + i + (column - middle) * step);
      return activate(load(staged[middle] + i), attention);
    };
    int64_t i = group * lanes;
    for (; i + lanes <= count; i += groups * lanes) {
      __builtin_prefetch(reinterpret_cast<const void*>(next + i * sizeof(T)));
      store(y + i, at(i));
    }
    if (step == 1 && i < count) {
      if (count >= lanes) {
        store(y + count - lanes, at(count - lanes));  // some of them twice
      } else {
        store_up_to(y, at(0), count);
      }
    }
  }
}

template <class T, int k, int step>
void rows(const Rows& job) {
  constexpr int64_t reach = k / 2;
  const int64_t count = job.width * step;
  const int64_t pitch = scratch_pitch(job.width, step, k);
  // Short rows are staged several at a time: a vector read across rows that were written just before
  // it would wait for them.
  const int64_t longest = scratch_batch(job.width, step), rows_here = job.end - job.begin;
  const int64_t batch = rows_here < longest ? rows_here : longest;
  float* slots[k - 1 + largest_batch];
  for (int64_t j = 0; j < k - 1 + batch; ++j) {
    slots[j] = job.scratch + j * pitch + scratch_left(step, k);
    for (int64_t i = 0; i < reach * step; ++i) slots[j][-1 - i] = slots[j][count + i] = 0.0f;
  }
  const Taps<k, step> taps(job.taps);
  const T* const x = static_cast<const T*>(job.x);
  const auto row = [&](int64_t i) -> const T* {
    if (i < 0 || i >= job.height) return nullptr;
    if (i < job.begin) return static_cast<const T*>(job.above) + (i - job.begin + reach) * count;
    if (i >= job.end) return static_cast<const T*>(job.below) + (i - job.end) * count;
    return x + i * count;
  };
  for (int64_t j = 0; j + 1 < k; ++j) stage(row(job.begin - reach + j), slots[j], count);
  for (int64_t first = job.begin; first < job.end; first += batch) {
    const int64_t some = job.end - first < batch ? job.end - first : batch;
    for (int64_t j = 0; j < some; ++j)
      stage(row(first + reach + j), slots[k - 1 + j], count);
    for (int64_t j = 0; j < some; ++j) {
      const int64_t i = first + j;
      // What is staged a batch later: often of the next plane, which this thread takes up next. An address
      // and no pointer, since it may lie beyond the last plane; asking for that does nothing.
      const uintptr_t next = reinterpret_cast<uintptr_t>(x) + (i + reach + batch) * count * sizeof(T);
      compute<T, k, step>(slots + j, static_cast<T*>(job.y) + i * count, next, count, taps);
    }
    float* used[largest_batch];
    for (int64_t j = 0; j < some; ++j) used[j] = slots[j];
    for (int64_t j = 0; j < k - 1; ++j) slots[j] = slots[some + j];
    for (int64_t j = 0; j < some; ++j) slots[k - 1 + j] = used[j];
  }
}

// ---- small planes -----------------------------------------------------------------------------------

template <class T, int k>
void planes(const Planes& job) {
  const int64_t size = job.height * job.width;
  float* const turned = job.scratch;
  const T* const x = static_cast<const T*>(job.x);
  T* const y = static_cast<T*>(job.y);
  Floats v[lanes];
  // The last chunk takes up some elements of the one before it, so that it is whole as well.
  const int64_t last = size < lanes ? 0 : size - lanes;
  const int64_t whole = size < lanes ? size : lanes;
  for (int64_t i = 0; i < size; i += lanes) {
    const int64_t at = i < last ? i : last;
    for (int c = 0; c < lanes; ++c) v[c] = c < job.count ? load_up_to(x + c * size + at, whole) : Floats{};
    transpose(v);
    for (int64_t j = 0; j < whole; ++j) store(turned + (at + j) * lanes, v[j]);
  }
  rows<float, k, lanes>({turned, turned, job.height, job.width, 0, job.height, nullptr, nullptr, job.taps,
                         turned + size * lanes});
  for (int64_t i = 0; i < size; i += lanes) {
    const int64_t at = i < last ? i : last;
    for (int64_t j = 0; j < lanes; ++j) v[j] = j < whole ? load(turned + (at + j) * lanes) : Floats{};
    transpose(v);
    for (int c = 0; c < job.count; ++c) store_up_to(y + c * size + at, v[c], whole);
  }
}

}  // namespace
}  // namespace sparta

#include "image_impl.h"

namespace sparta {
namespace {

void exponentials(const float* x, float* y, size_t count) {
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) store(y + i, exponential(load(x + i)));
  if (i < count) {
    const int64_t some = static_cast<int64_t>(count - i);
    store_up_to(y + i, exponential(load_up_to(x + i, some)), some);
  }
}

// The table of kernels, indexed as Kernels says. A vector of more lanes than a block has no use there.
template <class T>
constexpr auto rows_of = Table<Rows>{{rows<T, 1, 1>, rows<T, 3, 1>, rows<T, 5, 1>, rows<T, 7, 1>}};
template <class T>
constexpr auto planes_of = Table<Planes>{{planes<T, 1>, planes<T, 3>, planes<T, 5>, planes<T, 7>}};
template <int block>
constexpr Table<Rows> blocked() {
  if constexpr (lanes <= block) {
    return {{rows<float, 1, block>, rows<float, 3, block>, rows<float, 5, block>, rows<float, 7, block>}};
  } else {
    return {{nullptr, nullptr, nullptr, nullptr}};
  }
}

constexpr auto images = Table<Image>{{image_asked<1>, image_asked<3>, image_asked<5>, image_asked<7>}};
constexpr auto image_gradients =
    Table<Image>{{gradients_asked<1>, gradients_asked<3>, gradients_asked<5>, gradients_asked<7>}};

constexpr Kernels kernels = {
    SPARTA_NAME,
    lanes,
    {rows_of<float>, rows_of<Float16>, rows_of<Bfloat16>},
    {planes_of<float>, planes_of<Float16>, planes_of<Bfloat16>},
    blocked<8>(),
    blocked<16>(),
    images,
    image_gradients,
    exponentials,
};

}  // namespace
}  // namespace sparta
