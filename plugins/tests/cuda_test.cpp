// Runs the CUDA kernels and their dispatch on the CPU and compares them with float64. This covers the arithmetic, the
// bounds, the alignment and data races; it does not cover nvcc's code or the speed.
//
//   cuda_test [cases] [seed]    all types, kernel sizes, layouts, with and without residual, on random shapes
//   cuda_test --threads         some of them with an operating system thread per CUDA thread, for ThreadSanitizer

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

// How often each kind of kernel ran; the test fails if one of them never did.
int ran_16_bytes = 0, ran_4_bytes = 0, ran_1_element = 0, ran_nhwc8 = 0;

struct CpuLauncher {
  Order order;
  std::mt19937& random;

  template <class T, int k, int V, bool add>
  cudaError_t nchw(const Arguments& a, unsigned blocks) const {
    ++(V == 1 ? ran_1_element : V * sizeof(T) == 16 ? ran_16_bytes : ran_4_bytes);
    return start<T>(sparta::cuda::forward_nchw<T, k, V, add>, a, blocks);
  }
  template <class T, int k, bool add>
  cudaError_t nhwc8(const Arguments& a, unsigned blocks) const {
    ++ran_nhwc8;
    return start<T>(sparta::cuda::forward_nhwc8<T, k, add>, a, blocks);
  }
  template <class T, class Kernel>
  cudaError_t start(Kernel kernel, const Arguments& a, unsigned blocks) const {
    const auto typed = [](const void* p) { return static_cast<const T*>(p); };
    const auto to_int = [](int64_t value) { return static_cast<int>(value); };
    cuda_on_cpu::launch(blocks, sparta::cuda::block_threads, order, random, [&] {
      kernel(typed(a.x), typed(a.residual), typed(a.weight), typed(a.bias), static_cast<T*>(a.y), to_int(a.shape.n),
             to_int(a.shape.c), to_int(a.shape.h), to_int(a.shape.w));
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
  size_t shift;  // elements from an aligned address to the start of x, residual and y

  std::string text() const {
    const char* types[] = {"float32", "float16", "bfloat16"};
    const char* orders[] = {"forward", "reverse", "random", "threads"};
    return "[" + std::to_string(shape.n) + ", " + std::to_string(shape.c) + ", " + std::to_string(shape.h) + ", " +
           std::to_string(shape.w) + "] k=" + std::to_string(k) + " " + types[static_cast<int>(type)] +
           (layout == Layout::nchw ? "" : " nhwc8") + (add ? " add" : "") + " shift " + std::to_string(shift) +
           " " + orders[static_cast<int>(order)];
  }
};

[[noreturn]] void fail(const Case& c, const std::string& message) {
  std::printf("FAILED %s: %s\n", c.text().c_str(), message.c_str());
  std::exit(1);
}

// Return a tensor of normally distributed values, one in 16 of them 0.
Tensor random_tensor(Type type, int64_t count, size_t shift, double scale, std::mt19937& random) {
  Tensor tensor(type, static_cast<size_t>(count), shift);
  std::normal_distribution<double> normal(0, scale);
  for (size_t i = 0; i < tensor.count(); ++i) tensor.set(i, random() % 16 == 0 ? 0.0 : normal(random));
  return tensor;
}

void compare(const Case& c, std::mt19937& random) {
  const Shape& s = c.shape;
  const int64_t channels = c.layout == Layout::nchw ? s.c : sparta::cuda::ceil_div(s.c, 8) * 8;
  const int64_t count = s.n * channels * s.h * s.w;
  Tensor x = random_tensor(c.type, count, c.shift, 1, random), residual = random_tensor(c.type, count, c.shift, 1, random);
  Tensor weight = random_tensor(c.type, s.c * c.k * c.k, random() % 2, 1.0 / static_cast<double>(c.k), random);
  Tensor bias = random_tensor(c.type, s.c, random() % 2, 1, random);
  Tensor y(c.type, static_cast<size_t>(count), c.shift);
  const auto index = [&](int64_t n, int64_t channel, int64_t i, int64_t j) {
    return static_cast<size_t>(c.layout == Layout::nchw ? ((n * channels + channel) * s.h + i) * s.w + j
                                                          : ((n * s.h + i) * s.w + j) * channels + channel);
  };
  for (int64_t n = 0; n < s.n; ++n)  // padding channels must not affect the result
    for (int64_t channel = s.c; channel < channels; ++channel)
      for (int64_t i = 0; i < s.h * s.w; ++i) x.set(index(n, channel, i / s.w, i % s.w), NAN);
  for (size_t i = 0; i < y.count(); ++i) y.set(i, NAN);

  const Arguments arguments{c.type, c.layout, x.data(), c.add ? residual.data() : nullptr, weight.data(), bias.data(),
                            y.data(), s, c.k};
  if (sparta::cuda::dispatch(arguments, CpuLauncher{c.order, random}) != cudaSuccess) fail(c, "dispatch returned an error");

  const auto input = [&](size_t i) { return x.at(i) + (c.add ? residual.at(i) : 0); };
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t channel = 0; channel < channels; ++channel)
      for (int64_t i = 0; i < s.h; ++i)
        for (int64_t j = 0; j < s.w; ++j) {
          const size_t at = index(n, channel, i, j);
          double expected = 0, tolerance = 0;
          if (channel < s.c) {
            double preactivation = bias.at(static_cast<size_t>(channel)), sum_of_abs = std::abs(preactivation);
            for (int64_t a = 0; a < c.k; ++a)
              for (int64_t b = 0; b < c.k; ++b) {
                const int64_t row = i + a - c.k / 2, column = j + b - c.k / 2;
                if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
                const double term = weight.at(static_cast<size_t>((channel * c.k + a) * c.k + b)) *
                                    input(index(n, channel, row, column));
                preactivation += term;
                sum_of_abs += std::abs(term);
              }
            expected = std::max(input(at), 0.0) * 2 / (1 + std::exp(-preactivation));
            // Half a unit in the last place of the type, and the float32 errors of the sum, exp and the quotient.
            tolerance = ulp(expected, c.type) / 2 * 1.01 +
                        expected * (sum_of_abs * static_cast<double>(c.k * c.k + 4) + 10) * std::ldexp(1.0, -24);
          }
          const double result = y.at(at);
          if (!(std::abs(result - expected) <= tolerance))
            fail(c, "y[" + std::to_string(n) + ", " + std::to_string(channel) + ", " + std::to_string(i) + ", " +
                        std::to_string(j) + "] is " + std::to_string(result) + ", expected " + std::to_string(expected));
        }
}

void test_random_shapes(int cases, std::mt19937& random) {
  const auto pick = [&](int64_t max) { return 1 + static_cast<int64_t>(random() % static_cast<uint32_t>(max)); };
  for (int i = 0; i < cases; ++i)
    for (const Type type : {Type::float32, Type::float16, Type::bfloat16})
      for (const Layout layout : {Layout::nchw, Layout::nhwc8})
        for (const int64_t k : {1, 3, 5, 7}) {
          if (!sparta::cuda::has_kernel(type, layout, k)) continue;
          Case c{type, layout, {pick(3), pick(5), pick(20), pick(9)}, k, random() % 2 == 0,
                 static_cast<Order>(random() % 3), 0};
          if (layout == Layout::nhwc8) {
            c.shape.c = pick(20);
          } else {
            if (random() % 2) c.shape.w *= random() % 2 ? 8 : 2;  // widths for 16- and 4-byte accesses
            c.shift = random() % 3 == 0 ? random() % 8 : 0;
          }
          compare(c, random);
        }
}

// Feature maps of real networks, single pixels, rows and columns.
void test_chosen_shapes(std::mt19937& random) {
  for (const Shape& s : {Shape{1, 2, 56, 56}, {2, 3, 7, 7}, {1, 9, 4, 4}, {1, 1, 1, 1}, {1, 1, 1, 300}, {1, 1, 300, 1}})
    for (const Type type : {Type::float32, Type::float16, Type::bfloat16})
      for (const bool add : {false, true}) {
        compare({type, Layout::nchw, s, 3, add, Order::forward, 0}, random);
        if (type != Type::float32) compare({type, Layout::nhwc8, s, 3, add, Order::reverse, 0}, random);
      }
}

// w = 0, b = 0 gives exactly ReLU; NaN appears exactly where the window covers it.
void test_zeros_and_nan(std::mt19937& random) {
  const Case c{Type::float32, Layout::nchw, {1, 1, 5, 8}, 3, false, Order::forward, 0};
  Tensor x = random_tensor(c.type, 40, 0, 1e30, random), weight(c.type, 9, 0), bias(c.type, 1, 0), y(c.type, 40, 0);
  for (size_t i = 0; i < 9; ++i) weight.set(i, 0);
  bias.set(0, 0);
  const Arguments arguments{c.type, c.layout, x.data(), nullptr, weight.data(), bias.data(), y.data(), c.shape, c.k};
  sparta::cuda::dispatch(arguments, CpuLauncher{c.order, random});
  for (size_t i = 0; i < 40; ++i)
    if (y.at(i) != std::max(x.at(i), 0.0)) fail(c, "w = 0, b = 0 is not ReLU");
  x.set(18, NAN);  // at [2, 2]
  sparta::cuda::dispatch(arguments, CpuLauncher{c.order, random});
  for (size_t i = 0; i < 40; ++i) {
    const bool covered = i / 8 >= 1 && i / 8 <= 3 && i % 8 >= 1 && i % 8 <= 3;
    if (std::isnan(y.at(i)) != covered) fail(c, "NaN is not where the window covers it");
  }
}

void test_invalid_arguments(std::mt19937& random) {
  alignas(16) char memory[64] = {};
  Arguments a{Type::float16, Layout::nhwc8, memory, nullptr, memory, memory, memory + 32, {1, 1, 1, 1}, 5};
  const Case c{a.type, a.layout, a.shape, a.k, false, Order::forward, 0};
  const auto expect = [&](cudaError_t status, const char* message) {
    if (sparta::cuda::dispatch(a, CpuLauncher{c.order, random}) != status) fail(c, message);
  };
  expect(cudaErrorInvalidValue, "k = 5 in nhwc8 was not refused");
  a.k = 3;
  a.x = memory + 2;
  expect(cudaErrorMisalignedAddress, "nhwc8 at an unaligned address was not refused");
  a.layout = Layout::nchw;
  a.k = 4;
  expect(cudaErrorInvalidValue, "k = 4 was not refused");
  a.k = 3;
  a.shape = {1, -1, 1, 1};
  expect(cudaErrorInvalidValue, "a negative size was not refused");
  a.shape = {1, 1, int64_t{1} << 31, 1};
  expect(cudaErrorInvalidValue, "a height beyond int32 was not refused");
  a.shape = {1 << 20, 1 << 20, 1 << 5, 1};
  expect(cudaErrorInvalidConfiguration, "a grid of too many blocks was not refused");
  a.shape = {0, 1, 1, 1};
  expect(cudaSuccess, "an empty tensor was refused");
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937 random(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 0);
  if (argc > 1 && std::strcmp(argv[1], "--threads") == 0) {
    for (const Type type : {Type::float32, Type::float16, Type::bfloat16})
      for (const bool add : {false, true}) {
        compare({type, Layout::nchw, {1, 3, 6, 16}, 3, add, Order::threads, 0}, random);
        compare({type, Layout::nchw, {2, 1, 5, 7}, 5, add, Order::threads, 0}, random);
        if (type != Type::float32)
          compare({type, Layout::nhwc8, {1, 11, 5, 5}, 3, add, Order::threads, 0}, random);
      }
    std::printf("ok\n");
    return 0;
  }
  test_random_shapes(argc > 1 ? std::atoi(argv[1]) : 24, random);
  test_chosen_shapes(random);
  test_zeros_and_nan(random);
  test_invalid_arguments(random);
  if (!ran_16_bytes || !ran_4_bytes || !ran_1_element || !ran_nhwc8) {
    std::printf("FAILED a kernel never ran: %d %d %d %d\n", ran_16_bytes, ran_4_bytes, ran_1_element, ran_nhwc8);
    return 1;
  }
  std::printf("ok: %d launches with 16-byte accesses, %d with 4-byte, %d with one element, %d in nhwc8\n", ran_16_bytes,
              ran_4_bytes, ran_1_element, ran_nhwc8);
}
