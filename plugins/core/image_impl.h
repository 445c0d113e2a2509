// Whole images in the order [H, W, C], as training has them: the function, and its gradients. Part of
// kernel_impl.h, which includes it.

#pragma once

namespace sparta {
namespace {

// `lanes` channels of an image between zeros, as [H + k - 1, W + k - 1, lanes].
template <int k>
struct Bordered {
  static constexpr int64_t reach = k / 2;
  float* first;  // of the border
  int64_t pitch;

  SPARTA_INLINE Bordered(float* at, int64_t height, int64_t width) : first(at), pitch((width + k - 1) * lanes) {
    for (int64_t i = 0; i < height + k - 1; ++i) {
      float* const row = first + i * pitch;
      const bool inside = i >= reach && i < height + reach;
      const int64_t left = inside ? reach * lanes : pitch;
      for (int64_t j = 0; j < left; j += lanes) store(row + j, Floats{});
      for (int64_t j = inside ? pitch - left : pitch; j < pitch; j += lanes) store(row + j, Floats{});
    }
  }
  SPARTA_INLINE float* at(int64_t i, int64_t j) const { return first + (i + reach) * pitch + (j + reach) * lanes; }
};

// 2 * sigmoid(a) = 2 / (1 + exp(-a)); within 4e-38 of it beyond |a| = 87, NaN for NaN. In about half the operations of
// gate_of, whose values below 1e-38 are exact as well: 2^n is one factor, since n is within -126 and 126.
SPARTA_INLINE Floats gate_in_training(Floats a) {
  const Exponential e = split_exponential<127>(larger(all(-87.0f), -larger(all(-87.0f), a)));
  const Floats power = reinterpret_cast<Floats>(reinterpret_cast<Ints>(e.shifted) << 23);  // 2^n
  return 2.0f / (e.fraction * power + 1.0f);
}

// Adds w (*) what is around each of `few` neighbours in a row to their sums, or w turned by 180 degrees, w (*)^T, for
// a direction of -1. Several side by side, since the sums of one alone would wait for each other.
template <int k, int few, int direction>
SPARTA_INLINE void convolve(const float* centre, int64_t pitch, const Taps<k, lanes>& taps, Floats* sums) {
  constexpr int reach = k / 2;
  for (int row = 0; row < k; ++row)
    for (int column = 0; column < k; ++column)
      for (int p = 0; p < few; ++p)
        sums[p] += taps.tap[0][row * k + column] *
                   load(centre + direction * (row - reach) * pitch + (direction * (column - reach) + p) * lanes);
}

template <int value>
struct Constant {  // a number that the compiler knows, as an argument
  SPARTA_INLINE constexpr operator int() const { return value; }
};

// Runs body(j, few) for the pixels of a row, `few` of them from j on at a time.
template <class Body>
SPARTA_INLINE void by_few(int64_t width, const Body& body) {
  constexpr Constant<4> several;
  constexpr Constant<1> one;
  int64_t j = 0;
  for (; j + several <= width; j += several) body(j, several);
  for (; j < width; ++j) body(j, one);
}

// Runs body(first, count of channels) for the groups of an image's channels.
template <class Body>
SPARTA_INLINE void by_group(int64_t channels, const Body& body) {
  int64_t first = 0;
  for (; first + lanes <= channels; first += lanes) body(first, Constant<lanes>{});
  if (first < channels) body(first, channels - first);
}

// Channels [first, first + some) of an image into their place.
template <int k, class Count>
SPARTA_INLINE void take(const Image& job, int64_t first, Count some, const Bordered<k>& to) {
  const float* from = job.x + first;
  for (int64_t i = 0; i < job.height; ++i)
    for (int64_t j = 0; j < job.width; ++j, from += job.channels) store(to.at(i, j), load_up_to(from, some));
}

template <int k, bool keep>
void image(const Image& job) {
  const Bordered<k> x(job.scratch, job.height, job.width);
  by_group(job.channels, [&](int64_t first, auto some) __attribute__((always_inline)) {
    const Taps<k, lanes> taps(job.taps + first * (1 + k * k));
    take<k>(job, first, some, x);
    for (int64_t i = 0; i < job.height; ++i)
      by_few(job.width, [&](int64_t j, auto few) __attribute__((always_inline)) {
        const float* const at = x.at(i, j);
        const int64_t pixel = (i * job.width + j) * job.channels + first;
        Floats gates[few];
        for (int p = 0; p < few; ++p) gates[p] = taps.bias[0];
        convolve<k, few, 1>(at, x.pitch, taps, gates);
        for (int p = 0; p < few; ++p) gates[p] = gate_in_training(gates[p]);
        for (int p = 0; p < few; ++p) {
          if constexpr (keep) store_up_to(job.gate + pixel + p * job.channels, gates[p], some);
          store_up_to(job.result + pixel + p * job.channels, larger(Floats{}, load(at + p * lanes)) * gates[p], some);
        }
      });
  });
}

// With s = sigmoid(a), a = w (*) x + b, and g the gradient in y:
//
//   of_a = g * relu(x) * 2 s (1 - s)          dx = g * [x > 0] * 2 s + w (*)^T of_a
//   db = sum of_a                             dw[d] = sum of_a[p] x[p + d]
template <int k, bool of_taps>
void gradients(const Image& job) {
  constexpr int64_t reach = k / 2, count = 1 + k * k;
  const Bordered<k> of_a(job.scratch, job.height, job.width);
  const Bordered<k> x(job.scratch + (job.height + k - 1) * of_a.pitch, of_taps ? job.height : 1 - k, job.width);
  by_group(job.channels, [&](int64_t first, auto some) __attribute__((always_inline)) {
    const Taps<k, lanes> taps(job.taps + first * count);
    if constexpr (of_taps) take<k>(job, first, some, x);
    Floats of_these[count] = {};
    // A row of of_a, and then the row of the result that has waited for it; until then it holds its first term.
    for (int64_t i = 0; i < job.height + reach; ++i) {
      for (int64_t j = 0; i < job.height && j < job.width; ++j) {
        const int64_t pixel = (i * job.width + j) * job.channels + first;
        const Floats value = load_up_to(job.x + pixel, some), gate = load_up_to(job.gate + pixel, some);
        const Floats gradient = load_up_to(job.gradient + pixel, some);
        const Floats through = (value <= Floats{}) ? Floats{} : gradient * gate;
        const Floats steep = through * value * (1.0f - 0.5f * gate);
        store(of_a.at(i, j), steep);
        store_up_to(job.result + pixel, through, some);
        if constexpr (of_taps) {
          const float* const at = x.at(i, j);
          of_these[0] += steep;
          for (int row = 0; row < k; ++row)
            for (int column = 0; column < k; ++column)
              of_these[1 + row * k + column] +=
                  steep * load(at + (row - reach) * x.pitch + (column - reach) * lanes);
        }
      }
      if (i < reach) continue;
      by_few(job.width, [&](int64_t j, auto few) __attribute__((always_inline)) {
        const float* const at = of_a.at(i - reach, j);
        float* const result = job.result + ((i - reach) * job.width + j) * job.channels + first;
        Floats sums[few];
        for (int p = 0; p < few; ++p) sums[p] = load_up_to(result + p * job.channels, some);
        convolve<k, few, -1>(at, of_a.pitch, taps, sums);
        for (int p = 0; p < few; ++p) store_up_to(result + p * job.channels, sums[p], some);
      });
    }
    if constexpr (of_taps) {
      for (int64_t t = 0; t < count; ++t) {
        float one[lanes];
        store(one, of_these[t]);
        for (int64_t c = 0; c < some; ++c) job.of_taps[(first + c) * count + t] = one[c];
      }
    }
  });
}

template <int k>
void image_asked(const Image& job) {
  job.gate == nullptr ? image<k, false>(job) : image<k, true>(job);
}

template <int k>
void gradients_asked(const Image& job) {
  job.of_taps == nullptr ? gradients<k, false>(job) : gradients<k, true>(job);
}

}  // namespace
}  // namespace sparta
