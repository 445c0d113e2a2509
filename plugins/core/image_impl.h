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

template <int k>
SPARTA_INLINE Floats attention_at(const float* centre, int64_t pitch, const Taps<k, lanes>& taps) {
  constexpr int reach = k / 2;
  Floats sum = taps.bias[0];
  for (int row = 0; row < k; ++row)
    for (int column = 0; column < k; ++column)
      sum += taps.tap[0][row * k + column] * load(centre + (row - reach) * pitch + (column - reach) * lanes);
  return sum;
}

struct Whole {  // a group of as many channels as a vector has
  SPARTA_INLINE operator int64_t() const { return lanes; }
};

// Runs body(first, count of channels) for the groups of an image's channels.
template <class Body>
SPARTA_INLINE void by_group(int64_t channels, const Body& body) {
  int64_t first = 0;
  for (; first + lanes <= channels; first += lanes) body(first, Whole{});
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
    int64_t pixel = first;
    for (int64_t i = 0; i < job.height; ++i)
      for (int64_t j = 0; j < job.width; ++j, pixel += job.channels) {
        const float* const at = x.at(i, j);
        const Floats gate = gate_of(attention_at<k>(at, x.pitch, taps));
        if constexpr (keep) store_up_to(job.gate + pixel, gate, some);
        store_up_to(job.result + pixel, larger(Floats{}, load(at)) * gate, some);
      }
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
    Floats sums[count] = {};
    int64_t pixel = first;
    for (int64_t i = 0; i < job.height; ++i)
      for (int64_t j = 0; j < job.width; ++j, pixel += job.channels) {
        const Floats value = load_up_to(job.x + pixel, some), gate = load_up_to(job.gate + pixel, some);
        const Floats gradient = load_up_to(job.gradient + pixel, some);
        const Floats through = (value <= Floats{}) ? Floats{} : gradient * gate;
        const Floats steep = through * value * (1.0f - 0.5f * gate);
        store(of_a.at(i, j), steep);
        if constexpr (of_taps) {
          const float* const at = x.at(i, j);
          sums[0] += steep;
          for (int row = 0; row < k; ++row)
            for (int column = 0; column < k; ++column)
              sums[1 + row * k + column] += steep * load(at + (row - reach) * x.pitch + (column - reach) * lanes);
        }
      }
    pixel = first;
    for (int64_t i = 0; i < job.height; ++i)
      for (int64_t j = 0; j < job.width; ++j, pixel += job.channels) {
        const Floats value = load_up_to(job.x + pixel, some), gate = load_up_to(job.gate + pixel, some);
        const Floats gradient = load_up_to(job.gradient + pixel, some);
        const float* const at = of_a.at(i, j);
        Floats sum = (value <= Floats{}) ? Floats{} : gradient * gate;
        for (int row = 0; row < k; ++row)
          for (int column = 0; column < k; ++column)
            sum += taps.tap[0][row * k + column] * load(at + (reach - row) * of_a.pitch + (reach - column) * lanes);
        store_up_to(job.result + pixel, sum, some);
      }
    if constexpr (of_taps) {
      for (int64_t t = 0; t < count; ++t) {
        float one[lanes];
        store(one, sums[t]);
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
