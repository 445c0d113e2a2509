// The kernel for GPUs, its own source on the CPU, against float64. What it says of a GPU: the arithmetic,
// the bounds, the barriers; not the compiler, the memory model or the speed.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <type_traits>

#include "cuda_on_cpu.h"

#include "cuda_kernel.h"

namespace {

using cuda_on_cpu::Order;

template <class T>
T from_double(double value) {
  if constexpr (std::is_same_v<T, float>) {
    return static_cast<float>(value);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(static_cast<float>(value));
  } else {
    return __float2bfloat16_rn(static_cast<float>(value));
  }
}

template <class T>
constexpr double unit = std::is_same_v<T, float> ? 0x1p-23 : std::is_same_v<T, __half> ? 0x1p-10 : 0x1p-7;
template <class T>
constexpr double smallest = std::is_same_v<T, float> ? 0x1p-149 : std::is_same_v<T, __half> ? 0x1p-24 : 0x1p-133;

template <class T, int k>
void compare(int64_t n, int64_t c, int64_t h, int64_t w, Order order, std::mt19937& random) {
  // Heap blocks of exactly their size, so that a sanitizer sees every access beyond them.
  const auto make = [&](int64_t count) {
    auto values = std::make_unique<T[]>(static_cast<size_t>(count));
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = from_double<T>(normal(random));
    return values;
  };
  const auto x = make(n * c * h * w), weight = make(c * k * k), bias = make(c);
  auto y = make(n * c * h * w);
  const auto at = [&](const std::unique_ptr<T[]>& values, int64_t i) {
    return static_cast<double>(sparta::cuda::widen(values[static_cast<size_t>(i)]));
  };
  cuda_on_cpu::Block block(sparta::cuda::tile_width, sparta::cuda::block_height);
  const int64_t blocks = sparta::cuda::tiles(n * c, h, w);
  for (int64_t i = 0; i < blocks; ++i) {
    blockIdx.x = static_cast<unsigned>(order == Order::reverse ? blocks - 1 - i : i);
    block.run([&] { sparta::cuda::sparta_kernel<T, k>(x.get(), weight.get(), bias.get(), y.get(), c, h, w); }, order,
              random);
  }
  for (int64_t plane = 0; plane < n * c; ++plane)
    for (int64_t i = 0; i < h; ++i)
      for (int64_t j = 0; j < w; ++j) {
        double attention = at(bias, plane % c), size = std::abs(attention);
        for (int a = 0; a < k; ++a)
          for (int b = 0; b < k; ++b) {
            const int64_t row = i + a - k / 2, column = j + b - k / 2;
            if (row < 0 || row >= h || column < 0 || column >= w) continue;
            const double term = at(weight, plane % c * k * k + a * k + b) * at(x, (plane * h + row) * w + column);
            attention += term;
            size += std::abs(term);
          }
        const double expected = std::max(at(x, (plane * h + i) * w + j), 0.0) * 2 / (1 + std::exp(-attention));
        const double found = at(y, (plane * h + i) * w + j);
        const double slack = expected * (unit<T> / 2 + (size * (k * k + 2) + 8) * 0x1p-24) + smallest<T>;
        if (!(std::abs(found - expected) <= slack)) {
          std::printf("FAILED [%ld, %ld, %ld, %ld] k=%d %zu bytes: %.9g, expected %.9g\n", static_cast<long>(n),
                      static_cast<long>(c), static_cast<long>(h), static_cast<long>(w), k, sizeof(T), found, expected);
          std::exit(1);
        }
      }
}

template <class T>
void sizes(std::mt19937& random, int cases) {
  for (int i = 0; i < cases; ++i) {
    const auto pick = [&](int64_t most) { return 1 + static_cast<int64_t>(random() % static_cast<uint32_t>(most)); };
    const auto order = static_cast<Order>(i % 3);
    const int64_t n = pick(2), c = pick(3), h = pick(40), w = pick(70);
    compare<T, 1>(n, c, h, w, order, random);
    compare<T, 3>(n, c, h, w, order, random);
    compare<T, 5>(n, c, h, w, order, random);
    compare<T, 7>(n, c, h, w, order, random);
  }
}

}  // namespace

int main() {
  std::mt19937 random(0);
  sizes<float>(random, 16);
  sizes<__half>(random, 6);
  sizes<__nv_bfloat16>(random, 6);
  std::printf("ok\n");
}
