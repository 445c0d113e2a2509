// Forward and backward for one image [H, W, C], for training. Included by kernel_impl.h.

#pragma once

namespace sparta {
namespace {

// A view of `lanes` channels of an image with zeros around them: [H + k - 1, W + k - 1, lanes].
template <int k>
struct PaddedMap {
  static constexpr int64_t padding = k / 2;
  float* begin;
  int64_t pitch;  // floats from one row to the next

  // Use the memory at `memory` and write the zeros around the image.
  SPARTA_INLINE PaddedMap(float* memory, int64_t height, int64_t width) : begin(memory), pitch((width + k - 1) * lanes) {
    for (int64_t i = 0; i < height + k - 1; ++i) {
      float* const row = begin + i * pitch;
      const bool inside = i >= padding && i < height + padding;
      const int64_t left = inside ? padding * lanes : pitch;
      for (int64_t j = 0; j < left; j += lanes) store(row + j, Floats{});
      for (int64_t j = inside ? pitch - left : pitch; j < pitch; j += lanes) store(row + j, Floats{});
    }
  }
  SPARTA_INLINE float* pixel(int64_t i, int64_t j) const {
    return begin + (i + padding) * pitch + (j + padding) * lanes;
  }
};

// Return 2 * sigmoid(a) = 2 / (1 + exp(-a)), NaN for NaN; for |a| > 87 with an absolute error of up to 4e-38. It takes
// half the operations of compute_gate, which is exact below 1e-38 too: here 2^n is one factor, with |n| <= 126.
SPARTA_INLINE Floats compute_gate_fast(Floats a) {
  const Floats clamped = max_or_second(broadcast(-87.0f), -max_or_second(broadcast(-87.0f), a));
  const Exponential e = split_exponential<127>(clamped);
  const Floats power = reinterpret_cast<Floats>(reinterpret_cast<Ints>(e.shifted) << 23);  // 2^n
  return 2.0f / (e.fraction * power + 1.0f);
}

// Add w (*) x at `pixels` neighbouring pixels of a row to their sums. direction = -1 rotates w by 180 degrees, which
// is the transposed convolution. Several pixels at once, because the additions to one sum wait for each other.
template <int k, int pixels, int direction>
SPARTA_INLINE void convolve(const float* centre, int64_t pitch, const WeightVectors<k, lanes>& weights, Floats* sums) {
  constexpr int padding = k / 2;
  for (int row = 0; row < k; ++row)
    for (int column = 0; column < k; ++column)
      for (int p = 0; p < pixels; ++p)
        sums[p] += weights.weight[0][row * k + column] *
                   load(centre + direction * (row - padding) * pitch + (direction * (column - padding) + p) * lanes);
}

template <int value>
struct Constant {  // a compile-time integer that can be passed as an argument
  SPARTA_INLINE constexpr operator int() const { return value; }
};

// Call body(j, pixels) for each group of 4 pixels [j, j + pixels) of a row, then for each remaining pixel.
template <class Body>
SPARTA_INLINE void for_each_pixel_group(int64_t width, const Body& body) {
  constexpr Constant<4> four;
  constexpr Constant<1> one;
  int64_t j = 0;
  for (; j + four <= width; j += four) body(j, four);
  for (; j < width; ++j) body(j, one);
}

// Call body(first channel, number of channels) for each group of up to `lanes` channels.
template <class Body>
SPARTA_INLINE void for_each_channel_group(int64_t channels, const Body& body) {
  int64_t first = 0;
  for (; first + lanes <= channels; first += lanes) body(first, Constant<lanes>{});
  if (first < channels) body(first, channels - first);
}

// Copy channels [first, first + count) of x into the padded map.
template <int k, class Count>
SPARTA_INLINE void load_channels(const ImageArgs& args, int64_t first, Count count, const PaddedMap<k>& to) {
  const float* from = args.x + first;
  for (int64_t i = 0; i < args.height; ++i)
    for (int64_t j = 0; j < args.width; ++j, from += args.channels) store(to.pixel(i, j), load_first(from, count));
}

template <int k, bool keep_gate>
void forward_image(const ImageArgs& args) {
  const PaddedMap<k> x(args.scratch, args.height, args.width);
  for_each_channel_group(args.channels, [&](int64_t first, auto count) __attribute__((always_inline)) {
    const WeightVectors<k, lanes> weights(args.weights + first * (1 + k * k));
    load_channels<k>(args, first, count, x);
    for (int64_t i = 0; i < args.height; ++i)
      for_each_pixel_group(args.width, [&](int64_t j, auto pixels) __attribute__((always_inline)) {
        const float* const centre = x.pixel(i, j);
        const int64_t offset = (i * args.width + j) * args.channels + first;
        Floats gates[pixels];
        for (int p = 0; p < pixels; ++p) gates[p] = weights.bias[0];
        convolve<k, pixels, 1>(centre, x.pitch, weights, gates);
        for (int p = 0; p < pixels; ++p) gates[p] = compute_gate_fast(gates[p]);
        for (int p = 0; p < pixels; ++p) {
          if constexpr (keep_gate) store_first(args.gate + offset + p * args.channels, gates[p], count);
          store_first(args.result + offset + p * args.channels,
                      max_or_second(Floats{}, load(centre + p * lanes)) * gates[p], count);
        }
      });
  });
}

// With a = w (*) x + b, gate = 2 * sigmoid(a) and (*)^T the transposed convolution:
//
//   grad_relu          = grad_y * gate where x > 0, else 0
//   grad_preactivation = grad_relu * x * (1 - gate / 2)          the gradient with respect to a
//   grad_x             = grad_relu + w (*)^T grad_preactivation
//   grad_bias          = sum of grad_preactivation
//   grad_weight[d]     = sum over p of grad_preactivation[p] * x[p + d]
template <int k, bool needs_grad_params>
void backward_image(const ImageArgs& args) {
  constexpr int64_t padding = k / 2, params = 1 + k * k;
  const PaddedMap<k> grad_a(args.scratch, args.height, args.width);
  const PaddedMap<k> x(args.scratch + (args.height + k - 1) * grad_a.pitch, needs_grad_params ? args.height : 1 - k,
                       args.width);
  for_each_channel_group(args.channels, [&](int64_t first, auto count) __attribute__((always_inline)) {
    const WeightVectors<k, lanes> weights(args.weights + first * params);
    if constexpr (needs_grad_params) load_channels<k>(args, first, count, x);
    Floats grad_params[params] = {};
    // Row i of grad_preactivation, then row i - k / 2 of grad_x, whose neighbours are complete by then. Until then
    // the row of the result holds grad_relu.
    for (int64_t i = 0; i < args.height + padding; ++i) {
      for (int64_t j = 0; i < args.height && j < args.width; ++j) {
        const int64_t offset = (i * args.width + j) * args.channels + first;
        const Floats value = load_first(args.x + offset, count), gate = load_first(args.gate + offset, count);
        const Floats grad_y = load_first(args.grad_y + offset, count);
        const Floats grad_relu = (value <= Floats{}) ? Floats{} : grad_y * gate;
        const Floats grad_preactivation = grad_relu * value * (1.0f - 0.5f * gate);
        store(grad_a.pixel(i, j), grad_preactivation);
        store_first(args.result + offset, grad_relu, count);
        if constexpr (needs_grad_params) {
          const float* const centre = x.pixel(i, j);
          grad_params[0] += grad_preactivation;
          for (int row = 0; row < k; ++row)
            for (int column = 0; column < k; ++column)
              grad_params[1 + row * k + column] +=
                  grad_preactivation * load(centre + (row - padding) * x.pitch + (column - padding) * lanes);
        }
      }
      if (i < padding) continue;
      for_each_pixel_group(args.width, [&](int64_t j, auto pixels) __attribute__((always_inline)) {
        const float* const centre = grad_a.pixel(i - padding, j);
        float* const result = args.result + ((i - padding) * args.width + j) * args.channels + first;
        Floats sums[pixels];
        for (int p = 0; p < pixels; ++p) sums[p] = load_first(result + p * args.channels, count);
        convolve<k, pixels, -1>(centre, grad_a.pitch, weights, sums);
        for (int p = 0; p < pixels; ++p) store_first(result + p * args.channels, sums[p], count);
      });
    }
    if constexpr (needs_grad_params) {
      for (int64_t t = 0; t < params; ++t) {
        float by_channel[lanes];
        store(by_channel, grad_params[t]);
        for (int64_t c = 0; c < count; ++c) args.grad_params[(first + c) * params + t] = by_channel[c];
      }
    }
  });
}

template <int k>
void forward_image(const ImageArgs& args) {
  args.gate == nullptr ? forward_image<k, false>(args) : forward_image<k, true>(args);
}

template <int k>
void backward_image(const ImageArgs& args) {
  args.grad_params == nullptr ? backward_image<k, false>(args) : backward_image<k, true>(args);
}

}  // namespace
}  // namespace sparta
