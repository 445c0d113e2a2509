// The kernels against float64, on random shapes. Sizes are small so that sanitizers can follow every
// access: each tensor is a heap block of exactly its size, at every alignment of its type.
//
//   core_test [cases] [seed]        SPARTA_ISA chooses the instructions; exits with 77 where there are none such
//   core_test --threads             only what several threads work on, for ThreadSanitizer

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
  double lowest, y, highest;  // what float32 arithmetic may give, before rounding to the type
};

template <class X>
Expected formula(const Case& c, const X& x, const Tensor& weight, const Tensor& bias, int64_t n, int64_t channel,
                 int64_t i, int64_t j) {
  const int64_t reach = c.k / 2;
  double attention = bias.at(static_cast<size_t>(channel)), size = std::abs(attention);
  for (int64_t a = 0; a < c.k; ++a)
    for (int64_t b = 0; b < c.k; ++b) {
      const int64_t row = i + a - reach, column = j + b - reach;
      if (row < 0 || row >= c.shape.h || column < 0 || column >= c.shape.w) continue;
      const double term = weight.at(static_cast<size_t>((channel * c.k + a) * c.k + b)) * x(n, channel, row, column);
      attention += term;
      size += std::abs(term);
    }
  const double value = x(n, channel, i, j);
  if (std::isnan(value) || std::isnan(attention)) return {NAN, NAN, NAN};
  const double rectified = std::max(value, 0.0);
  const auto y = [&](double a) { return rectified * (2 / (1 + std::exp(-a))); };
  // Half a unit for every sum; exp's own error, the quotient's and the products'.
  const double off = std::isinf(attention) ? 0 : size * static_cast<double>(c.k * c.k + 2) * std::ldexp(1.0, -24);
  const double unit = std::ldexp(8.0, -24);
  return {y(attention - off) * (1 - unit), y(attention), y(attention + off) * (1 + unit)};
}

bool close(double found, const Expected& expected, Type type) {
  if (std::isnan(expected.y)) return std::isnan(found);
  return found >= round_to(expected.lowest, type) && found <= round_to(expected.highest, type);
}

// One case, in both layouts where there are two.
void compare(const Case& c, std::mt19937_64& random, double special = 0) {
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  const auto shift = [&] { return static_cast<size_t>(random() % 16); };
  const double specials[] = {NAN, INFINITY, -INFINITY, 0.0, -0.0, 1e36, -1e36, 65504, 1e-40, -1e-40};
  const size_t plane = static_cast<size_t>(c.shape.h * c.shape.w), count = static_cast<size_t>(c.shape.n * c.shape.c) * plane;
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
  const auto each = [&](const char* layout, const auto& found_at) {
    for (int64_t n = 0; n < c.shape.n; ++n)
      for (int64_t channel = 0; channel < c.shape.c; ++channel)
        for (int64_t i = 0; i < c.shape.h; ++i)
          for (int64_t j = 0; j < c.shape.w; ++j) {
            const Expected expected = formula(c, value, weight, bias, n, channel, i, j);
            const double found = found_at(n, channel, i, j);
            CHECK(close(found, expected, c.type), "%s %s at [%ld, %ld, %ld, %ld]: %.9g, expected %.9g to %.9g", layout,
                  c.text().c_str(), static_cast<long>(n), static_cast<long>(channel), static_cast<long>(i),
                  static_cast<long>(j), found, expected.lowest, expected.highest);
          }
  };
  const sparta::Pool pool = c.threads ? threads() : sparta::serial();
  Tensor y(c.type, count, shift());
  const sparta::Function function(weight.data(), bias.data(), c.type, c.shape.c, c.k);
  if (c.in_place) {
    sparta::apply(function, c.type, x.data(), x.data(), c.shape, pool);
  } else {
    sparta::apply(function, c.type, x.data(), y.data(), c.shape, pool);
    for (size_t i = 0; i < count; ++i)
      CHECK(x.at(i) == before[i] || std::isnan(before[i]), "%s wrote to x", c.text().c_str());
  }
  each("planes", [&](auto... at) { return (c.in_place ? x : y).at(index(at...)); });

  if (c.type != Type::float32) return;
  for (const int64_t block : {int64_t{8}, int64_t{16}}) {
    const Shape padded{c.shape.n, (c.shape.c + block - 1) / block * block, c.shape.h, c.shape.w};
    const size_t total = static_cast<size_t>(padded.n * padded.c) * plane;
    Tensor blocked(c.type, total, shift()), result(c.type, total, shift());
    const auto place = [&](int64_t n, int64_t channel, int64_t i, int64_t j) {
      return static_cast<size_t>((((n * padded.c + channel / block * block) * c.shape.h + i * block) * c.shape.w) +
                                 j * block + channel % block);
    };
    for (size_t i = 0; i < total; ++i) blocked.set(i, 0);
    for (int64_t n = 0; n < c.shape.n; ++n)
      for (int64_t channel = 0; channel < c.shape.c; ++channel)
        for (int64_t i = 0; i < c.shape.h; ++i)
          for (int64_t j = 0; j < c.shape.w; ++j) blocked.set(place(n, channel, i, j), value(n, channel, i, j));
    const sparta::Function same(weight.data(), bias.data(), c.type, c.shape.c, c.k, block);
    Tensor& to = c.in_place ? blocked : result;
    sparta::apply_blocked(same, static_cast<const float*>(blocked.data()), static_cast<float*>(to.data()), padded, pool);
    each(block == 8 ? "blocks of 8" : "blocks of 16", [&](auto... at) { return to.at(place(at...)); });
    for (int64_t n = 0; n < c.shape.n; ++n)
      for (int64_t channel = c.shape.c; channel < padded.c; ++channel)
        for (int64_t i = 0; i < c.shape.h * c.shape.w; ++i)
          CHECK(to.at(place(n, channel, i / c.shape.w, i % c.shape.w)) == 0, "%s pads with something", c.text().c_str());
  }
}

void random_shapes(int cases, uint64_t seed, bool only_threads) {
  std::mt19937_64 random(seed);
  const auto pick = [&](std::initializer_list<int64_t> from) { return from.begin()[random() % from.size()]; };
  for (int i = 0; i < cases; ++i) {
    Case c{};
    c.k = pick({1, 3, 5, 7});
    c.type = static_cast<Type>(random() % 3);
    c.in_place = random() % 2;
    c.threads = random() % 4 == 0 || only_threads;
    // Around the widths of vectors, the sizes that networks have, and what is smaller than k.
    const auto side = [&] { return random() % 3 ? 1 + static_cast<int64_t>(random() % 20) : pick({4, 7, 8, 14, 28, 31, 32, 33, 56}); };
    c.shape = {pick({1, 1, 2, 3}), random() % 3 ? 1 + static_cast<int64_t>(random() % 20) : pick({1, 16, 17, 32, 40}), side(), side()};
    compare(c, random, i % 5 == 0 ? 0.05 : 0);
  }
}

void extreme_shapes() {
  std::mt19937_64 random(1);
  for (const bool in_place : {false, true})
    for (const int64_t k : {1, 3, 5, 7})
      for (const Type type : {Type::float32, Type::float16, Type::bfloat16})
        for (const Shape& shape : {Shape{0, 3, 4, 4}, Shape{1, 0, 4, 4}, Shape{1, 4, 0, 4}, Shape{1, 4, 4, 0}, Shape{1, 1, 1, 1},
                                   Shape{2, 1, 1, 40}, Shape{2, 5, 40, 1}, Shape{1, 3, 2, 2}, Shape{1, 2, 1, 1500}, Shape{1, 1, 1500, 3}})
          compare({shape, k, type, in_place, false}, random);
}

// Few planes are cut into bands, whose neighbours another thread may have overwritten.
void bands() {
  std::mt19937_64 random(3);
  for (const bool in_place : {false, true})
    for (const int64_t k : {1, 3, 7})
      for (const Shape& shape : {Shape{1, 1, 130, 300}, Shape{1, 3, 300, 130}, Shape{1, 1, 4, 20000}})
        compare({shape, k, k == 7 ? Type::bfloat16 : Type::float32, in_place, true}, random);
}

// ---- what must hold to the last bit ----------------------------------------------------------------

void extends_relu() {
  std::mt19937_64 random(2);
  for (const Type type : {Type::float32, Type::float16, Type::bfloat16}) {
    const Shape shape{2, 5, 19, 23};
    const size_t count = 2 * 5 * 19 * 23;
    Tensor x(type, count, 0), y(type, count, 0), zeros(type, 5 * 9, 0);
    for (size_t i = 0; i < zeros.count(); ++i) zeros.set(i, 0);
    std::normal_distribution<double> normal;
    for (size_t i = 0; i < count; ++i) x.set(i, normal(random) * std::pow(10.0, static_cast<int>(random() % 60) - 30));
    // The largest numbers as well: doubling x instead of the gate would overflow.
    x.set(0, round_to(type == Type::float16 ? 65504 : 3.3e38, type));
    for (size_t i = 0; i < count; ++i)
      if (std::isinf(x.at(i))) x.set(i, 1);
    sparta::apply({zeros.data(), zeros.data(), type, 5, 3}, type, x.data(), y.data(), shape, sparta::serial());
    for (size_t i = 0; i < count; ++i)
      CHECK(y.at(i) == std::max(x.at(i), 0.0), "w = 0, b = 0 is not ReLU: %.9g gives %.9g", x.at(i), y.at(i));
  }
}

// Half precision gives what float32 gives, rounded to nearest even. k = 1 and w = 0: a gate is its bias's alone.
// Returns how many results lie half-way between two numbers.
int compare_with_float32(Type type, const Shape& shape, Tensor& x, Tensor& bias) {
  Tensor y(type, x.count(), 0), zeros(type, bias.count(), 0);
  Tensor wide(Type::float32, x.count(), 0), exact(Type::float32, x.count(), 0);
  Tensor wide_zeros(Type::float32, bias.count(), 0), wide_bias(Type::float32, bias.count(), 0);
  for (size_t i = 0; i < x.count(); ++i) wide.set(i, x.at(i));
  for (size_t i = 0; i < bias.count(); ++i) {
    zeros.set(i, 0);
    wide_zeros.set(i, 0);
    wide_bias.set(i, bias.at(i));
  }
  const sparta::Function function(zeros.data(), bias.data(), type, shape.c, 1);
  const sparta::Function same(wide_zeros.data(), wide_bias.data(), Type::float32, shape.c, 1);
  sparta::apply(function, type, x.data(), y.data(), shape, sparta::serial());
  sparta::apply(same, Type::float32, wide.data(), exact.data(), shape, sparta::serial());
  int half_way = 0;
  for (size_t i = 0; i < x.count(); ++i) {
    const double expected = round_to(exact.at(i), type), found = y.at(i);
    CHECK(found == expected || (std::isnan(found) && std::isnan(expected)), "%.9g rounds to %.9g, not to %.9g (%s)",
          exact.at(i), expected, found, sparta::instructions());
    half_way += std::abs(exact.at(i) - expected) == unit_of(exact.at(i), type) / 2;
  }
  return half_way;
}

void rounds_to_nearest_even() {
  for (const Type type : {Type::float16, Type::bfloat16}) {
    // Every number there is, through a few gates.
    Tensor x(type, 4 << 16, 0), bias(type, 4, 0);
    for (size_t i = 0; i < x.count(); ++i) {
      const uint16_t pattern = static_cast<uint16_t>(i);
      std::memcpy(static_cast<char*>(x.data()) + 2 * i, &pattern, 2);
    }
    for (size_t i = 0; i < 4; ++i) bias.set(i, static_cast<double>(i) - 1.4);
    compare_with_float32(type, {1, 4, 256, 256}, x, bias);
    // Every mantissa of bfloat16 through every gate whose bias lies between 1/64 and 8: some are half-way.
    Tensor mantissas(type, 2304 * 128, 0), gates(type, 2304, 0);
    for (size_t i = 0; i < gates.count(); ++i)
      gates.set(i, (i % 2 ? -1 : 1) * std::ldexp(1 + static_cast<double>(i / 2 % 128) / 128, static_cast<int>(i / 256) - 6));
    for (size_t i = 0; i < mantissas.count(); ++i) mantissas.set(i, 1 + static_cast<double>(i % 128) / 128);
    const int half_way = compare_with_float32(type, {1, 2304, 8, 16}, mantissas, gates);
    CHECK(half_way > 0, "no product is half-way between two numbers");
  }
}

template <class Body>
void refuses(const char* what, const Body& body) {
  try {
    body();
  } catch (const std::invalid_argument&) {
    return;
  }
  CHECK(false, "accepted %s", what);
}

void refuses_nonsense() {
  const float values[64] = {};
  float y[64];
  for (const int64_t k : {0, 2, 4, 9}) refuses("a kernel size", [&] { sparta::Function(values, values, Type::float32, 1, k); });
  const sparta::Function function(values, values, Type::float32, 2, 1), blocked(values, values, Type::float32, 2, 1, 8);
  refuses("fewer channels", [&] { sparta::apply(function, Type::float32, values, y, {1, 1, 2, 2}, sparta::serial()); });
  refuses("more channels", [&] { sparta::apply(function, Type::float32, values, y, {1, 3, 2, 2}, sparta::serial()); });
  refuses("half a block", [&] { sparta::apply_blocked(blocked, values, y, {1, 2, 2, 2}, sparta::serial()); });
  refuses("two blocks", [&] { sparta::apply_blocked(blocked, values, y, {1, 16, 2, 2}, sparta::serial()); });
}

}  // namespace

int main(int argc, char** argv) {
  return run_tests([&] {
    if (argc > 1 && std::strcmp(argv[1], "--threads") == 0) {
      bands();
      random_shapes(40, 0, true);
      return;
    }
    extends_relu();
    rounds_to_nearest_even();
    refuses_nonsense();
    extreme_shapes();
    bands();
    random_shapes(argc > 1 ? std::atoi(argv[1]) : 300, argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0, false);
  });
}
