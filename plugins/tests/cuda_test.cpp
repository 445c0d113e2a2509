// The kernels for GPUs, their own source and their own choice among them on the CPU, against float64. What it
// says of a GPU: the arithmetic, the bounds, the alignment, that threads do not race; not the compiler or the speed.
//
//   cuda_test [cases] [seed]    every type, size, layout and form, on random shapes at every alignment
//   cuda_test --threads         a few of them, every CUDA thread a thread of its own, for ThreadSanitizer

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "cuda_on_cpu.h"

#include "cuda_dispatch.h"
#include "cuda_kernel.h"
#include "reference.h"

namespace {

using cuda_on_cpu::Order;
using sparta::Shape;
using sparta::cuda::Arguments;
using sparta::cuda::Layout;

// Which kernels ran, so that a test that never comes to one fails.
int widest_ran = 0, narrower_ran = 0, single_ran = 0, channels_ran = 0;

struct OnCpu {
  Order order;
  std::mt19937& random;

  template <class T, int k, int V, bool add>
  cudaError_t planes(const Arguments& a, unsigned blocks) const {
    ++(V == 1 ? single_ran : V * sizeof(T) == 16 ? widest_ran : narrower_ran);
    return start<T>(sparta::cuda::planes<T, k, V, add>, a, blocks);
  }
  template <class T, int k, bool add>
  cudaError_t channels8(const Arguments& a, unsigned blocks) const {
    ++channels_ran;
    return start<T>(sparta::cuda::channels8<T, k, add>, a, blocks);
  }
  template <class T, class Kernel>
  cudaError_t start(Kernel kernel, const Arguments& a, unsigned blocks) const {
    const auto of = [](const void* p) { return static_cast<const T*>(p); };
    const auto size = [](int64_t value) { return static_cast<int>(value); };
    cuda_on_cpu::launch(blocks, sparta::cuda::block_threads, order, random, [&] {
      kernel(of(a.x), of(a.residual), of(a.weight), of(a.bias), static_cast<T*>(a.y), size(a.shape.n),
             size(a.shape.c), size(a.shape.h), size(a.shape.w));
    });
    return cudaSuccess;
  }
};

struct Case {
  Type type;
  Layout layout;
  Shape shape;
  int64_t k;
  bool add;
  Order order;
  size_t shift;  // elements by which x, residual and y miss an aligned address

  std::string text() const {
    const char* types[] = {"float32", "float16", "bfloat16"};
    const char* orders[] = {"forward", "reverse", "random", "threads"};
    return "[" + std::to_string(shape.n) + ", " + std::to_string(shape.c) + ", " + std::to_string(shape.h) + ", " +
           std::to_string(shape.w) + "] k=" + std::to_string(k) + " " + types[static_cast<int>(type)] +
           (layout == Layout::planes ? "" : " channels8") + (add ? " add" : "") + " shift " + std::to_string(shift) +
           " " + orders[static_cast<int>(order)];
  }
};

[[noreturn]] void fail(const Case& c, const std::string& what) {
  std::printf("FAILED %s: %s\n", c.text().c_str(), what.c_str());
  std::exit(1);
}

// A tensor of random values, some of them 0, in an aligned heap block of exactly its size, so that a sanitizer
// sees every access beyond.
Tensor filled(Type type, int64_t count, size_t shift, double scale, std::mt19937& random) {
  Tensor tensor(type, static_cast<size_t>(count), shift);
  std::normal_distribution<double> normal(0, scale);
  for (size_t i = 0; i < tensor.count(); ++i) tensor.set(i, random() % 16 == 0 ? 0.0 : normal(random));
  return tensor;
}

void compare(const Case& c, std::mt19937& random) {
  const Shape& s = c.shape;
  const int64_t stored = c.layout == Layout::planes ? s.c : sparta::cuda::ceil_div(s.c, 8) * 8;
  const int64_t count = s.n * stored * s.h * s.w;
  Tensor x = filled(c.type, count, c.shift, 1, random), residual = filled(c.type, count, c.shift, 1, random);
  Tensor weight = filled(c.type, s.c * c.k * c.k, random() % 2, 1.0 / static_cast<double>(c.k), random);
  Tensor bias = filled(c.type, s.c, random() % 2, 1, random);
  Tensor y(c.type, static_cast<size_t>(count), c.shift);
  const auto index = [&](int64_t n, int64_t channel, int64_t i, int64_t j) {
    return static_cast<size_t>(c.layout == Layout::planes ? ((n * stored + channel) * s.h + i) * s.w + j
                                                          : ((n * s.h + i) * s.w + j) * stored + channel);
  };
  for (int64_t n = 0; n < s.n; ++n)  // what pads must change nothing
    for (int64_t channel = s.c; channel < stored; ++channel)
      for (int64_t i = 0; i < s.h * s.w; ++i) x.set(index(n, channel, i / s.w, i % s.w), NAN);
  for (size_t i = 0; i < y.count(); ++i) y.set(i, NAN);

  const Arguments arguments{c.type, c.layout, x.data(), c.add ? residual.data() : nullptr, weight.data(), bias.data(),
                            y.data(), s, c.k};
  if (sparta::cuda::dispatch(arguments, OnCpu{c.order, random}) != cudaSuccess) fail(c, "it was refused");

  const auto input = [&](size_t at) { return x.at(at) + (c.add ? residual.at(at) : 0); };
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t channel = 0; channel < stored; ++channel)
      for (int64_t i = 0; i < s.h; ++i)
        for (int64_t j = 0; j < s.w; ++j) {
          const size_t at = index(n, channel, i, j);
          double expected = 0, slack = 0;
          if (channel < s.c) {
            double attention = bias.at(static_cast<size_t>(channel)), size = std::abs(attention);
            for (int64_t a = 0; a < c.k; ++a)
              for (int64_t b = 0; b < c.k; ++b) {
                const int64_t row = i + a - c.k / 2, column = j + b - c.k / 2;
                if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
                const double term = weight.at(static_cast<size_t>((channel * c.k + a) * c.k + b)) *
                                    input(index(n, channel, row, column));
                attention += term;
                size += std::abs(term);
              }
            expected = std::max(input(at), 0.0) * 2 / (1 + std::exp(-attention));
            // Half a unit of the storage, and the sums', the exponential's and the quotient's in float32.
            slack = unit_of(expected, c.type) / 2 * 1.01 +
                    expected * (size * static_cast<double>(c.k * c.k + 4) + 10) * std::ldexp(1.0, -24);
          }
          const double found = y.at(at);
          if (!(std::abs(found - expected) <= slack))
            fail(c, "y[" + std::to_string(n) + ", " + std::to_string(channel) + ", " + std::to_string(i) + ", " +
                        std::to_string(j) + "] is " + std::to_string(found) + ", expected " + std::to_string(expected));
        }
}

void random_shapes(int cases, std::mt19937& random) {
  const auto pick = [&](int64_t most) { return 1 + static_cast<int64_t>(random() % static_cast<uint32_t>(most)); };
  for (int i = 0; i < cases; ++i)
    for (const Type type : {Type::float32, Type::float16, Type::bfloat16})
      for (const Layout layout : {Layout::planes, Layout::channels8})
        for (const int64_t k : {1, 3, 5, 7}) {
          if (!sparta::cuda::supports(type, layout, k)) continue;
          Case c{type, layout, {pick(3), pick(5), pick(20), pick(9)}, k, random() % 2 == 0,
                 static_cast<Order>(random() % 3), 0};
          if (layout == Layout::channels8) {
            c.shape.c = pick(20);
          } else {
            if (random() % 2) c.shape.w *= random() % 2 ? 8 : 2;  // so that every access has its turn
            c.shift = random() % 3 == 0 ? random() % 8 : 0;
          }
          compare(c, random);
        }
}

// What a network's own planes are, and what is at the edge of everything.
void chosen_shapes(std::mt19937& random) {
  for (const Shape& s : {Shape{1, 2, 56, 56}, {2, 3, 7, 7}, {1, 9, 4, 4}, {1, 1, 1, 1}, {1, 1, 1, 300}, {1, 1, 300, 1}})
    for (const Type type : {Type::float32, Type::float16, Type::bfloat16})
      for (const bool add : {false, true}) {
        compare({type, Layout::planes, s, 3, add, Order::forward, 0}, random);
        if (type != Type::float32) compare({type, Layout::channels8, s, 3, add, Order::reverse, 0}, random);
      }
}

// w = 0, b = 0 is ReLU to the last bit; NaN stays where it is and spreads to those who read it.
void edges(std::mt19937& random) {
  const Case c{Type::float32, Layout::planes, {1, 1, 5, 8}, 3, false, Order::forward, 0};
  Tensor x = filled(c.type, 40, 0, 1e30, random), weight(c.type, 9, 0), bias(c.type, 1, 0), y(c.type, 40, 0);
  for (size_t i = 0; i < 9; ++i) weight.set(i, 0);
  bias.set(0, 0);
  const Arguments arguments{c.type, c.layout, x.data(), nullptr, weight.data(), bias.data(), y.data(), c.shape, c.k};
  sparta::cuda::dispatch(arguments, OnCpu{c.order, random});
  for (size_t i = 0; i < 40; ++i)
    if (y.at(i) != std::max(x.at(i), 0.0)) fail(c, "a gate of zeros is not ReLU");
  x.set(18, NAN);  // at [2, 2]
  sparta::cuda::dispatch(arguments, OnCpu{c.order, random});
  for (size_t i = 0; i < 40; ++i) {
    const bool near = i / 8 >= 1 && i / 8 <= 3 && i % 8 >= 1 && i % 8 <= 3;
    if (std::isnan(y.at(i)) != near) fail(c, "NaN is not where its readers are");
  }
}

void refusals(std::mt19937& random) {
  alignas(16) char memory[64] = {};
  Arguments a{Type::float16, Layout::channels8, memory, nullptr, memory, memory, memory + 32, {1, 1, 1, 1}, 5};
  const Case c{a.type, a.layout, a.shape, a.k, false, Order::forward, 0};
  const auto expect = [&](cudaError_t status, const char* what) {
    if (sparta::cuda::dispatch(a, OnCpu{c.order, random}) != status) fail(c, what);
  };
  expect(cudaErrorInvalidValue, "k = 5 in channels8 was not refused");
  a.k = 3;
  a.x = memory + 2;
  expect(cudaErrorMisalignedAddress, "channels8 at an odd address was not refused");
  a.layout = Layout::planes;
  a.k = 4;
  expect(cudaErrorInvalidValue, "k = 4 was not refused");
  a.k = 3;
  a.shape = {1, -1, 1, 1};
  expect(cudaErrorInvalidValue, "a negative size was not refused");
  a.shape = {1, 1, int64_t{1} << 31, 1};
  expect(cudaErrorInvalidValue, "a side beyond int32 was not refused");
  a.shape = {1 << 20, 1 << 20, 1 << 5, 1};
  expect(cudaErrorInvalidConfiguration, "more blocks than a grid has were not refused");
  a.shape = {0, 1, 1, 1};
  expect(cudaSuccess, "nothing to do was refused");
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937 random(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 0);
  if (argc > 1 && std::strcmp(argv[1], "--threads") == 0) {
    for (const Type type : {Type::float32, Type::float16, Type::bfloat16})
      for (const bool add : {false, true}) {
        compare({type, Layout::planes, {1, 3, 6, 16}, 3, add, Order::threads, 0}, random);
        compare({type, Layout::planes, {2, 1, 5, 7}, 5, add, Order::threads, 0}, random);
        if (type != Type::float32)
          compare({type, Layout::channels8, {1, 11, 5, 5}, 3, add, Order::threads, 0}, random);
      }
    std::printf("ok\n");
    return 0;
  }
  random_shapes(argc > 1 ? std::atoi(argv[1]) : 24, random);
  chosen_shapes(random);
  edges(random);
  refusals(random);
  if (!widest_ran || !narrower_ran || !single_ran || !channels_ran) {
    std::printf("FAILED a kernel was never chosen: %d %d %d %d\n", widest_ran, narrower_ran, single_ran, channels_ran);
    return 1;
  }
  std::printf("ok: %d kernels of 16 bytes, %d of 4, %d of one element, %d of channels\n", widest_ran, narrower_ran,
              single_ran, channels_ran);
}
