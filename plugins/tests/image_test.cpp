// The kernels of training, images in the order [N, H, W, C] and their gradients, against float64 on random
// shapes. Every tensor is a heap block of exactly its size, at every alignment, so that sanitizers can follow.
//
//   image_test [--threads]       SPARTA_ISA chooses the instructions; exits with 77 where there are none such

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "reference.h"
#include "sparta.h"
#include "testing.h"

using sparta::Shape;

namespace {

struct Case {
  Shape shape;
  int64_t k;
  bool gradients_of_taps;
  double steepness;  // of the gates: large for those that are 0 or 2
  bool with_nan;
};

struct Reference {
  std::vector<double> y, of_x, of_taps;  // of_taps [N, C, 1 + k * k]
};

Reference formula(const Case& c, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gradient) {
  const auto [n, channels, height, width] = c.shape;
  const int64_t reach = c.k / 2, taps = 1 + c.k * c.k;
  const auto index = [&, height = height, width = width, channels = channels](int64_t image, int64_t i, int64_t j,
                                                                             int64_t channel) {
    return static_cast<size_t>(((image * height + i) * width + j) * channels + channel);
  };
  Reference found{std::vector<double>(x.count()), std::vector<double>(x.count()),
                  std::vector<double>(static_cast<size_t>(n * channels * taps))};
  for (int64_t image = 0; image < n; ++image)
    for (int64_t channel = 0; channel < channels; ++channel)
      for (int64_t i = 0; i < height; ++i)
        for (int64_t j = 0; j < width; ++j) {
          const size_t here = index(image, i, j, channel);
          const auto each_tap = [&, height = height, width = width](auto&& body) {
            for (int64_t a = 0; a < c.k; ++a)
              for (int64_t b = 0; b < c.k; ++b) {
                const int64_t row = i + a - reach, column = j + b - reach;
                if (row < 0 || row >= height || column < 0 || column >= width) continue;
                const int64_t tap = a * c.k + b;
                body(tap, weight.at(static_cast<size_t>(channel * c.k * c.k + tap)), index(image, row, column, channel));
              }
          };
          double attention = bias.at(static_cast<size_t>(channel));
          each_tap([&](int64_t, double w, size_t there) { attention += w * x.at(there); });
          const double share = 1 / (1 + std::exp(-attention)), value = x.at(here), g = gradient.at(here);
          found.y[here] = std::max(value, 0.0) * 2 * share;
          found.of_x[here] += value > 0 ? g * 2 * share : 0;
          const double steep = g * std::max(value, 0.0) * 2 * share * (1 - share);
          double* const sums = found.of_taps.data() + (image * channels + channel) * taps;
          sums[0] += steep;
          for (int64_t tap = 1; tap < taps; ++tap) sums[tap] += steep * 0.0;  // by the zeros around: NaN for NaN
          each_tap([&](int64_t tap, double w, size_t there) {
            found.of_x[there] += w * steep;
            sums[1 + tap] += steep * x.at(there);
          });
        }
  return found;
}

void compare(const char* what, const Case& c, const Tensor& found, const std::vector<double>& expected) {
  double scale = 1, worst = 0;
  for (const double value : expected)
    if (!std::isnan(value)) scale = std::max(scale, std::abs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(found.at(i))) continue;
    const double off = std::abs(found.at(i) - expected[i]);
    worst = off <= worst ? worst : off;  // NaN for one that is NaN alone
  }
  CHECK(worst <= 4e-6 * scale * c.steepness, "%s of [%ld, %ld, %ld, %ld] k=%ld is off by %g of %g", what, static_cast<long>(c.shape.n),
        static_cast<long>(c.shape.c), static_cast<long>(c.shape.h), static_cast<long>(c.shape.w),
        static_cast<long>(c.k), worst, scale);
}

void try_case(const Case& c, std::mt19937_64& random, const sparta::Pool& pool) {
  std::normal_distribution<double> normal;
  const auto filled = [&](int64_t count, double scale) {
    Tensor made(sparta::Type::float32, static_cast<size_t>(count), random() % 4);
    for (size_t i = 0; i < made.count(); ++i) made.set(i, scale * normal(random));
    return made;
  };
  const int64_t size = c.shape.n * c.shape.c * c.shape.h * c.shape.w, taps = 1 + c.k * c.k;
  Tensor x = filled(size, 1), weight = filled(c.shape.c * c.k * c.k, c.steepness / static_cast<double>(c.k));
  Tensor bias = filled(c.shape.c, c.steepness), gradient = filled(size, 1);
  if (c.with_nan && size > 0) x.set(random() % static_cast<uint64_t>(size), std::nan(""));
  Tensor y = filled(size, 9), gate = filled(size, 9), alone = filled(size, 9), of_x = filled(size, 9);
  Tensor of_taps = filled(c.shape.n * c.shape.c * taps, 9);
  const auto floats = [](Tensor& tensor) { return static_cast<float*>(tensor.data()); };
  const sparta::Function function(weight.data(), bias.data(), sparta::Type::float32, c.shape.c, c.k);
  sparta::apply_last(function, floats(x), floats(y), floats(gate), c.shape, pool);
  sparta::apply_last(function, floats(x), floats(alone), nullptr, c.shape, pool);
  sparta::gradients_last(function, floats(x), floats(gate), floats(gradient), floats(of_x),
                         c.gradients_of_taps ? floats(of_taps) : nullptr, c.shape, pool);
  const Reference expected = formula(c, x, weight, bias, gradient);
  compare("y", c, y, expected.y);
  compare("y, whose gate is not kept,", c, alone, expected.y);
  compare("the gradient in x", c, of_x, expected.of_x);
  if (c.gradients_of_taps) compare("the gradient in the taps", c, of_taps, expected.of_taps);
}

}  // namespace

int main(int argc, char** argv) {
  return run_tests([&] {
    const bool several = argc > 1 && std::strcmp(argv[1], "--threads") == 0;
    std::mt19937_64 random(0);
    const auto below = [&](uint64_t limit) { return static_cast<int64_t>(random() % limit); };
    for (int i = 0; i < (several ? 20 : 200); ++i) {
      const Case c{{below(4), below(40), below(10), below(10)}, 1 + 2 * (i % 4), i % 3 != 0, i % 5 == 0 ? 100.0 : 1.0, i % 7 == 0};
      try_case(c, random, several ? threads() : sparta::serial());
    }
  });
}
