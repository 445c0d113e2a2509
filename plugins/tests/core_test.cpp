// Compares forward_nchw and forward_nchwc with float64 on random shapes. Each tensor is a heap block of exactly its
// size, at every alignment of its type, so that sanitizers detect every access outside it.
//
//   core_test [cases] [seed]        SPARTA_ISA selects the instruction set; exit code 77 if it is not available
//   core_test --threads             only the cases with several threads, for ThreadSanitizer

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "reference.h"
#include "sparta.h"
#include "testing.h"

using sparta::Shape;
using sparta::Type;

namespace {

// ---- the formula, in float64 ---------------------------------------------------------------------------

struct Case {
  Shape shape;
  int64_t k;
  Type type;
  bool in_place, threads;
  std::string text() const {
    const char* names[] = {"float32", "float16", "bfloat16"};
    return "[" + std::to_string(shape.n) + ", " + std::to_string(shape.c) + ", " + std::to_string(shape.h) + ", " +
           std::to_string(shape.w) + "] k=" + std::to_string(k) + " " + names[static_cast<int>(type)] +
           (in_place ? " in place" : "") + (threads ? " threads" : "") + " " + sparta::instructions();
  }
};

struct Expected {
  double min, y, max;  // the bounds of float32 arithmetic, before rounding to the type
};

template <class X>
Expected formula(const Case& c, const X& x, const Tensor& weight, const Tensor& bias, int64_t n, int64_t channel,
                 int64_t i, int64_t j) {
  const int64_t padding = c.k / 2;
  double preactivation = bias.at(static_cast<size_t>(channel)), sum_of_abs = std::abs(preactivation);
  for (int64_t a = 0; a < c.k; ++a)
    for (int64_t b = 0; b < c.k; ++b) {
      const int64_t row = i + a - padding, column = j + b - padding;
      if (row < 0 || row >= c.shape.h || column < 0 || column >= c.shape.w) continue;
      const double term = weight.at(static_cast<size_t>((channel * c.k + a) * c.k + b)) * x(n, channel, row, column);
      preactivation += term;
      sum_of_abs += std::abs(term);
    }
  const double value = x(n, channel, i, j);
  if (std::isnan(value) || std::isnan(preactivation)) return {NAN, NAN, NAN};
  const double rectified = std::max(value, 0.0);
  const auto y = [&](double a) { return rectified * (2 / (1 + std::exp(-a))); };
  // Half a unit in the last place for every addition; then the errors of exp, the quotient and the products.
  const double error =
      std::isinf(preactivation) ? 0 : sum_of_abs * static_cast<double>(c.k * c.k + 2) * std::ldexp(1.0, -24);
  const double relative = std::ldexp(8.0, -24);
  return {y(preactivation - error) * (1 - relative), y(preactivation), y(preactivation + error) * (1 + relative)};
}

bool is_close(double y, const Expected& expected, Type type) {
  if (std::isnan(expected.y)) return std::isnan(y);
  return y >= round_to(expected.min, type) && y <= round_to(expected.max, type);
}

// Compare one case in [N, C, H, W] and, for float32, in the blocked layouts. A share `special` of x is NaN, infinite,
// zero, huge or subnormal.
void compare(const Case& c, std::mt19937_64& random, double special = 0) {
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  const auto shift = [&] { return static_cast<size_t>(random() % 16); };
  const double specials[] = {NAN, INFINITY, -INFINITY, 0.0, -0.0, 1e36, -1e36, 65504, 1e-40, -1e-40};
  const size_t map_size = static_cast<size_t>(c.shape.h * c.shape.w);
  const size_t count = static_cast<size_t>(c.shape.n * c.shape.c) * map_size;
  Tensor x(c.type, count, shift()), weight(c.type, static_cast<size_t>(c.shape.c * c.k * c.k), shift()),
      bias(c.type, static_cast<size_t>(c.shape.c), shift());
  for (size_t i = 0; i < count; ++i) x.set(i, uniform(random) < special ? specials[random() % 10] : 2 * normal(random));
  for (size_t i = 0; i < weight.count(); ++i) weight.set(i, normal(random) / static_cast<double>(c.k));
  for (size_t i = 0; i < bias.count(); ++i) bias.set(i, normal(random));
  std::vector<double> before(count);
  for (size_t i = 0; i < count; ++i) before[i] = x.at(i);
  const auto index = [&](int64_t n, int64_t channel, int64_t i, int64_t j) {
    return static_cast<size_t>(((n * c.shape.c + channel) * c.shape.h + i) * c.shape.w + j);
  };
  const auto value = [&](int64_t n, int64_t channel, int64_t i, int64_t j) { return before[index(n, channel, i, j)]; };
  const auto check_all = [&](const char* layout, const auto& result_at) {
    for (int64_t n = 0; n < c.shape.n; ++n)
      for (int64_t channel = 0; channel < c.shape.c; ++channel)
        for (int64_t i = 0; i < c.shape.h; ++i)
          for (int64_t j = 0; j < c.shape.w; ++j) {
            const Expected expected = formula(c, value, weight, bias, n, channel, i, j);
            const double y = result_at(n, channel, i, j);
            CHECK(is_close(y, expected, c.type), "%s %s at [%ld, %ld, %ld, %ld]: %.9g, expected %.9g to %.9g", layout,
                  c.text().c_str(), static_cast<long>(n), static_cast<long>(channel), static_cast<long>(i),
                  static_cast<long>(j), y, expected.min, expected.max);
          }
  };
  const sparta::Pool pool = c.threads ? thread_pool() : sparta::serial_pool();
  Tensor y(c.type, count, shift());
  const sparta::PackedWeights weights(weight.data(), bias.data(), c.type, c.shape.c, c.k);
  if (c.in_place) {
    sparta::forward_nchw(weights, c.type, x.data(), x.data(), c.shape, pool);
  } else {
    sparta::forward_nchw(weights, c.type, x.data(), y.data(), c.shape, pool);
    for (size_t i = 0; i < count; ++i)
      CHECK(x.at(i) == before[i] || std::isnan(before[i]), "%s wrote to x", c.text().c_str());
  }
  check_all("NCHW", [&](auto... at) { return (c.in_place ? x : y).at(index(at...)); });

  if (c.type != Type::float32) return;
  for (const int64_t block : {int64_t{8}, int64_t{16}}) {
    const Shape padded{c.shape.n, (c.shape.c + block - 1) / block * block, c.shape.h, c.shape.w};
    const size_t total = static_cast<size_t>(padded.n * padded.c) * map_size;
    Tensor blocked(c.type, total, shift()), result(c.type, total, shift());
    const auto blocked_index = [&](int64_t n, int64_t channel, int64_t i, int64_t j) {
      return static_cast<size_t>((((n * padded.c + channel / block * block) * c.shape.h + i * block) * c.shape.w) +
                                 j * block + channel % block);
    };
    for (size_t i = 0; i < total; ++i) blocked.set(i, 0);
    for (int64_t n = 0; n < c.shape.n; ++n)
      for (int64_t channel = 0; channel < c.shape.c; ++channel)
        for (int64_t i = 0; i < c.shape.h; ++i)
          for (int64_t j = 0; j < c.shape.w; ++j) blocked.set(blocked_index(n, channel, i, j), value(n, channel, i, j));
    const sparta::PackedWeights block_weights(weight.data(), bias.data(), c.type, c.shape.c, c.k, block);
    Tensor& to = c.in_place ? blocked : result;
    sparta::forward_nchwc(block_weights, static_cast<const float*>(blocked.data()), static_cast<float*>(to.data()),
                          padded, pool);
    check_all(block == 8 ? "blocks of 8" : "blocks of 16", [&](auto... at) { return to.at(blocked_index(at...)); });
    for (int64_t n = 0; n < c.shape.n; ++n)
      for (int64_t channel = c.shape.c; channel < padded.c; ++channel)
        for (int64_t i = 0; i < c.shape.h * c.shape.w; ++i)
          CHECK(to.at(blocked_index(n, channel, i / c.shape.w, i % c.shape.w)) == 0, "%s: a padding channel is not 0", c.text().c_str());
  }
}

void test_random_shapes(int cases, uint64_t seed, bool only_threads) {
  std::mt19937_64 random(seed);
  const auto pick = [&](std::initializer_list<int64_t> from) { return from.begin()[random() % from.size()]; };
  for (int i = 0; i < cases; ++i) {
    Case c{};
    c.k = pick({1, 3, 5, 7});
    c.type = static_cast<Type>(random() % 3);
    c.in_place = random() % 2;
    c.threads = random() % 4 == 0 || only_threads;
    // Sizes around the vector widths, sizes of real networks, and sizes smaller than k.
    const auto side = [&] { return random() % 3 ? 1 + static_cast<int64_t>(random() % 20) : pick({4, 7, 8, 14, 28, 31, 32, 33, 56}); };
    c.shape = {pick({1, 1, 2, 3}), random() % 3 ? 1 + static_cast<int64_t>(random() % 20) : pick({1, 16, 17, 32, 40}), side(), side()};
    compare(c, random, i % 5 == 0 ? 0.05 : 0);
  }
}

void test_extreme_shapes() {
  std::mt19937_64 random(1);
  for (const bool in_place : {false, true})
    for (const int64_t k : {1, 3, 5, 7})
      for (const Type type : {Type::float32, Type::float16, Type::bfloat16})
        for (const Shape& shape : {Shape{0, 3, 4, 4}, Shape{1, 0, 4, 4}, Shape{1, 4, 0, 4}, Shape{1, 4, 4, 0}, Shape{1, 1, 1, 1},
                                   Shape{2, 1, 1, 40}, Shape{2, 5, 40, 1}, Shape{1, 3, 2, 2}, Shape{1, 2, 1, 1500}, Shape{1, 1, 1500, 3}})
          compare({shape, k, type, in_place, false}, random);
}

// Few large feature maps are split into bands of rows. In place, another thread may overwrite the rows next to a band.
void test_bands() {
  std::mt19937_64 random(3);
  for (const bool in_place : {false, true})
    for (const int64_t k : {1, 3, 7})
      for (const Shape& shape : {Shape{1, 1, 130, 300}, Shape{1, 3, 300, 130}, Shape{1, 1, 4, 20000}})
        compare({shape, k, k == 7 ? Type::bfloat16 : Type::float32, in_place, true}, random);
}

// ---- exact results ---------------------------------------------------------------------------------

void test_zero_weights_give_relu() {
  std::mt19937_64 random(2);
  for (const Type type : {Type::float32, Type::float16, Type::bfloat16}) {
    const Shape shape{2, 5, 19, 23};
    const size_t count = 2 * 5 * 19 * 23;
    Tensor x(type, count, 0), y(type, count, 0), zeros(type, 5 * 9, 0);
    for (size_t i = 0; i < zeros.count(); ++i) zeros.set(i, 0);
    std::normal_distribution<double> normal;
    for (size_t i = 0; i < count; ++i) x.set(i, normal(random) * std::pow(10.0, static_cast<int>(random() % 60) - 30));
    // Include the largest numbers: doubling x instead of the gate would overflow.
    x.set(0, round_to(type == Type::float16 ? 65504 : 3.3e38, type));
    for (size_t i = 0; i < count; ++i)
      if (std::isinf(x.at(i))) x.set(i, 1);
    sparta::forward_nchw({zeros.data(), zeros.data(), type, 5, 3}, type, x.data(), y.data(), shape, sparta::serial_pool());
    for (size_t i = 0; i < count; ++i)
      CHECK(y.at(i) == std::max(x.at(i), 0.0), "w = 0, b = 0 is not ReLU: %.9g gives %.9g", x.at(i), y.at(i));
  }
}

// Check that a 16-bit type gives the float32 result rounded to nearest even, with k = 1 and w = 0, so that the gate
// depends on the bias alone. Return how many float32 results lie half-way between two numbers of the type.
int compare_with_float32(Type type, const Shape& shape, Tensor& x, Tensor& bias) {
  Tensor y(type, x.count(), 0), zeros(type, bias.count(), 0);
  Tensor x32(Type::float32, x.count(), 0), y32(Type::float32, x.count(), 0);
  Tensor zeros32(Type::float32, bias.count(), 0), bias32(Type::float32, bias.count(), 0);
  for (size_t i = 0; i < x.count(); ++i) x32.set(i, x.at(i));
  for (size_t i = 0; i < bias.count(); ++i) {
    zeros.set(i, 0);
    zeros32.set(i, 0);
    bias32.set(i, bias.at(i));
  }
  const sparta::PackedWeights weights(zeros.data(), bias.data(), type, shape.c, 1);
  const sparta::PackedWeights weights32(zeros32.data(), bias32.data(), Type::float32, shape.c, 1);
  sparta::forward_nchw(weights, type, x.data(), y.data(), shape, sparta::serial_pool());
  sparta::forward_nchw(weights32, Type::float32, x32.data(), y32.data(), shape, sparta::serial_pool());
  int half_way = 0;
  for (size_t i = 0; i < x.count(); ++i) {
    const double expected = round_to(y32.at(i), type), result = y.at(i);
    CHECK(result == expected || (std::isnan(result) && std::isnan(expected)), "%.9g must round to %.9g, not to %.9g (%s)",
          y32.at(i), expected, result, sparta::instructions());
    half_way += std::abs(y32.at(i) - expected) == ulp(y32.at(i), type) / 2;
  }
  return half_way;
}

void test_rounding() {
  for (const Type type : {Type::float16, Type::bfloat16}) {
    // All 2^16 numbers, with a few gates.
    Tensor x(type, 4 << 16, 0), bias(type, 4, 0);
    for (size_t i = 0; i < x.count(); ++i) {
      const uint16_t pattern = static_cast<uint16_t>(i);
      std::memcpy(static_cast<char*>(x.data()) + 2 * i, &pattern, 2);
    }
    for (size_t i = 0; i < 4; ++i) bias.set(i, static_cast<double>(i) - 1.4);
    compare_with_float32(type, {1, 4, 256, 256}, x, bias);
    // Every mantissa of bfloat16, with every gate whose bias lies between 1/64 and 8: some results are half-way.
    Tensor mantissas(type, 2304 * 128, 0), gates(type, 2304, 0);
    for (size_t i = 0; i < gates.count(); ++i)
      gates.set(i, (i % 2 ? -1 : 1) * std::ldexp(1 + static_cast<double>(i / 2 % 128) / 128, static_cast<int>(i / 256) - 6));
    for (size_t i = 0; i < mantissas.count(); ++i) mantissas.set(i, 1 + static_cast<double>(i % 128) / 128);
    const int half_way = compare_with_float32(type, {1, 2304, 8, 16}, mantissas, gates);
    CHECK(half_way > 0, "no result is half-way between two numbers");
  }
}

template <class Body>
void expect_invalid_argument(const char* what, const Body& body) {
  try {
    body();
  } catch (const std::invalid_argument&) {
    return;
  }
  CHECK(false, "accepted %s", what);
}

void test_invalid_arguments() {
  const float values[64] = {};
  float y[64];
  for (const int64_t k : {0, 2, 4, 9}) expect_invalid_argument("a kernel size", [&] { sparta::PackedWeights(values, values, Type::float32, 1, k); });
  const sparta::PackedWeights weights(values, values, Type::float32, 2, 1);
  const sparta::PackedWeights block_weights(values, values, Type::float32, 2, 1, 8);
  expect_invalid_argument("fewer channels", [&] { sparta::forward_nchw(weights, Type::float32, values, y, {1, 1, 2, 2}, sparta::serial_pool()); });
  expect_invalid_argument("more channels", [&] { sparta::forward_nchw(weights, Type::float32, values, y, {1, 3, 2, 2}, sparta::serial_pool()); });
  expect_invalid_argument("half a block", [&] { sparta::forward_nchwc(block_weights, values, y, {1, 2, 2, 2}, sparta::serial_pool()); });
  expect_invalid_argument("two blocks", [&] { sparta::forward_nchwc(block_weights, values, y, {1, 16, 2, 2}, sparta::serial_pool()); });
}

}  // namespace

int main(int argc, char** argv) {
  return run_tests([&] {
    if (argc > 1 && std::strcmp(argv[1], "--threads") == 0) {
      test_bands();
      test_random_shapes(40, 0, true);
      return;
    }
    test_zero_weights_give_relu();
    test_rounding();
    test_invalid_arguments();
    test_extreme_shapes();
    test_bands();
    test_random_shapes(argc > 1 ? std::atoi(argv[1]) : 300, argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0, false);
  });
}
