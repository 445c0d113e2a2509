// Compares forward_nhwc and backward_nhwc with float64 on random shapes. Each tensor is a heap block of exactly its
// size, at every alignment, so that sanitizers detect every access outside it.
//
//   image_test [--threads]       SPARTA_ISA selects the instruction set; exit code 77 if it is not available

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
  bool needs_grad_params;
  double weight_scale;  // large values give gates of 0 and 2
  bool with_nan;
};

struct Reference {
  std::vector<double> y, grad_x, grad_params;  // grad_params [N, C, 1 + k * k]: the bias, then the weight
};

Reference formula(const Case& c, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& grad_y) {
  const auto [n, channels, height, width] = c.shape;
  const int64_t padding = c.k / 2, params = 1 + c.k * c.k;
  const auto index = [&, height = height, width = width, channels = channels](int64_t image, int64_t i, int64_t j,
                                                                             int64_t channel) {
    return static_cast<size_t>(((image * height + i) * width + j) * channels + channel);
  };
  Reference result{std::vector<double>(x.count()), std::vector<double>(x.count()),
                   std::vector<double>(static_cast<size_t>(n * channels * params))};
  for (int64_t image = 0; image < n; ++image)
    for (int64_t channel = 0; channel < channels; ++channel)
      for (int64_t i = 0; i < height; ++i)
        for (int64_t j = 0; j < width; ++j) {
          const size_t centre = index(image, i, j, channel);
          const auto for_each_neighbour = [&, height = height, width = width](auto&& body) {
            for (int64_t a = 0; a < c.k; ++a)
              for (int64_t b = 0; b < c.k; ++b) {
                const int64_t row = i + a - padding, column = j + b - padding;
                if (row < 0 || row >= height || column < 0 || column >= width) continue;
                const int64_t t = a * c.k + b;
                body(t, weight.at(static_cast<size_t>(channel * c.k * c.k + t)), index(image, row, column, channel));
              }
          };
          double preactivation = bias.at(static_cast<size_t>(channel));
          for_each_neighbour([&](int64_t, double w, size_t at) { preactivation += w * x.at(at); });
          const double sigmoid = 1 / (1 + std::exp(-preactivation)), value = x.at(centre), g = grad_y.at(centre);
          result.y[centre] = std::max(value, 0.0) * 2 * sigmoid;
          result.grad_x[centre] += value > 0 ? g * 2 * sigmoid : 0;
          const double grad_preactivation = g * std::max(value, 0.0) * 2 * sigmoid * (1 - sigmoid);
          double* const grad_params = result.grad_params.data() + (image * channels + channel) * params;
          grad_params[0] += grad_preactivation;
          // The padding zeros contribute 0, or NaN if the factor is NaN.
          for (int64_t t = 1; t < params; ++t) grad_params[t] += grad_preactivation * 0.0;
          for_each_neighbour([&](int64_t t, double w, size_t at) {
            result.grad_x[at] += w * grad_preactivation;
            grad_params[1 + t] += grad_preactivation * x.at(at);
          });
        }
  return result;
}

void compare(const char* what, const Case& c, const Tensor& result, const std::vector<double>& expected) {
  double scale = 1, max_error = 0;
  for (const double value : expected)
    if (!std::isnan(value)) scale = std::max(scale, std::abs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(result.at(i))) continue;
    const double error = std::abs(result.at(i) - expected[i]);
    max_error = error <= max_error ? max_error : error;  // NaN if only one of them is NaN
  }
  CHECK(max_error <= 4e-6 * scale * c.weight_scale, "%s of [%ld, %ld, %ld, %ld] k=%ld: error %g, largest value %g", what, static_cast<long>(c.shape.n),
        static_cast<long>(c.shape.c), static_cast<long>(c.shape.h), static_cast<long>(c.shape.w),
        static_cast<long>(c.k), max_error, scale);
}

void test_case(const Case& c, std::mt19937_64& random, const sparta::Pool& pool) {
  std::normal_distribution<double> normal;
  const auto filled = [&](int64_t count, double scale) {
    Tensor tensor(sparta::Type::float32, static_cast<size_t>(count), random() % 4);
    for (size_t i = 0; i < tensor.count(); ++i) tensor.set(i, scale * normal(random));
    return tensor;
  };
  const int64_t size = c.shape.n * c.shape.c * c.shape.h * c.shape.w, params = 1 + c.k * c.k;
  Tensor x = filled(size, 1), weight = filled(c.shape.c * c.k * c.k, c.weight_scale / static_cast<double>(c.k));
  Tensor bias = filled(c.shape.c, c.weight_scale), grad_y = filled(size, 1);
  if (c.with_nan && size > 0) x.set(random() % static_cast<uint64_t>(size), std::nan(""));
  // Outputs are filled with values that a kernel must overwrite.
  Tensor y = filled(size, 9), gate = filled(size, 9), y_without_gate = filled(size, 9), grad_x = filled(size, 9);
  Tensor grad_params = filled(c.shape.n * c.shape.c * params, 9);
  const auto floats = [](Tensor& tensor) { return static_cast<float*>(tensor.data()); };
  const sparta::PackedWeights weights(weight.data(), bias.data(), sparta::Type::float32, c.shape.c, c.k);
  sparta::forward_nhwc(weights, floats(x), floats(y), floats(gate), c.shape, pool);
  sparta::forward_nhwc(weights, floats(x), floats(y_without_gate), nullptr, c.shape, pool);
  sparta::backward_nhwc(weights, floats(x), floats(gate), floats(grad_y), floats(grad_x),
                        c.needs_grad_params ? floats(grad_params) : nullptr, c.shape, pool);
  const Reference expected = formula(c, x, weight, bias, grad_y);
  compare("y", c, y, expected.y);
  compare("y without gate", c, y_without_gate, expected.y);
  compare("grad_x", c, grad_x, expected.grad_x);
  if (c.needs_grad_params) compare("grad_params", c, grad_params, expected.grad_params);
}

}  // namespace

int main(int argc, char** argv) {
  return run_tests([&] {
    const bool use_threads = argc > 1 && std::strcmp(argv[1], "--threads") == 0;
    std::mt19937_64 random(0);
    const auto below = [&](uint64_t limit) { return static_cast<int64_t>(random() % limit); };
    for (int i = 0; i < (use_threads ? 20 : 200); ++i) {
      const Case c{{below(4), below(40), below(10), below(10)}, 1 + 2 * (i % 4), i % 3 != 0, i % 5 == 0 ? 100.0 : 1.0, i % 7 == 0};
      test_case(c, random, use_threads ? thread_pool() : sparta::serial_pool());
    }
  });
}
