#include "sparta.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "kernel.h"

namespace sparta {
namespace {

const Kernels& choose() {
  const Kernels* offered[3] = {nullptr, nullptr, &portable_kernels()};  // the best first
#if defined(__x86_64__)
  __builtin_cpu_init();
  // F16C, which clang 14 cannot be asked for, came before AVX2 with every maker.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) offered[0] = avx512_kernels();
  if (avx2) offered[1] = avx2_kernels();
#endif
  const char* const asked = std::getenv("SPARTA_ISA");
  const Kernels* best = nullptr;
  for (const Kernels* const one : offered) {
    if (one == nullptr) continue;
    if (asked != nullptr && std::strcmp(asked, one->name) == 0) return *one;
    if (best == nullptr) best = one;
  }
  return *best;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

// The kernels for blocks of channels: the chosen ones, or others whose vectors fit into a block.
const Table<Rows>& blocked_kernels(int64_t block) {
  const Kernels* fit = &kernels();
  if (fit->lanes > block && avx2_kernels() != nullptr) fit = avx2_kernels();
  if (fit->lanes > block) fit = &portable_kernels();
  return block == 8 ? fit->blocked8 : fit->blocked16;
}

constexpr size_t size_of(Type type) { return type == Type::float32 ? 4 : 2; }

float half_to_float(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  float value;
  if (exponent == 31) {
    value = mantissa != 0 ? NAN : INFINITY;
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    value = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

float to_float(const void* values, Type type, int64_t i) {
  if (type == Type::float32) return static_cast<const float*>(values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  if (type == Type::float16) return half_to_float(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// One buffer a thread, kept for the next call.
float* scratch(int64_t floats) {
  struct Free {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<float, Free> buffer;
  thread_local int64_t capacity = 0;
  if (floats > capacity) {
    buffer.reset();
    capacity = 0;
    const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
    buffer.reset(static_cast<float*>(::operator new[](bytes, std::align_val_t{64})));
    capacity = floats;
  }
  return buffer.get();
}

void run_serially(void*, void (*task)(void*, size_t), size_t count, void* argument) {
  for (size_t i = 0; i < count; ++i) task(argument, i);
}

// Runs `job(i)` on the pool; an exception of one of them is thrown here, as std::bad_alloc, since
// nothing else can fail there and a pool of C functions lets none through.
template <class Job>
void run(const Pool& pool, int64_t count, const Job& job) {
  struct Argument {
    const Job& job;
    std::atomic<bool> failed;
  } argument{job, {false}};
  const auto task = [](void* p, size_t i) {
    auto& own = *static_cast<Argument*>(p);
    try {
      own.job(static_cast<int64_t>(i));
    } catch (const std::bad_alloc&) {
      own.failed = true;
    }
  };
  pool.run(pool.context, task, static_cast<size_t>(count), &argument);
  if (argument.failed) throw std::bad_alloc();
}

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Planes, or blocks of planes, a row at a time. Few planes are cut into bands, so that every thread of a
// large machine finds work; what a band reads of its neighbours is then saved before anything is written.
struct RowCall {
  void (*kernel)(const Rows&);
  const void* x;
  void* y;
  int64_t planes, height, width, block, k;
  size_t element;
  const float* taps;
  int64_t taps_stride, taps_period;  // plane p has the taps at (p % taps_period) * taps_stride

  void operator()(const Pool& pool) const {
    const int64_t reach = k / 2;
    const int64_t row = width * block;
    const int64_t bytes = row * static_cast<int64_t>(element);
    int64_t bands = std::min(enough / planes, height * row / least);
    bands = std::max<int64_t>(1, std::min(bands, height / std::max<int64_t>(reach, 1)));
    const auto start = [&](int64_t band) { return height * band / bands; };
    const auto at = [&](const void* base, int64_t plane, int64_t i) {
      return static_cast<const char*>(base) + (plane * height + i) * bytes;
    };
    // Per plane and border between bands: `reach` rows before it, and `reach` rows after it.
    std::vector<char> saved;
    const int64_t borders = x == y ? bands - 1 : 0;
    const auto slot = [&](int64_t plane, int64_t border) {
      return saved.data() + (plane * borders + border) * 2 * reach * bytes;
    };
    if (borders > 0 && reach > 0) {
      saved.resize(static_cast<size_t>(planes * borders * 2 * reach * bytes));
      for (int64_t plane = 0; plane < planes; ++plane)
        for (int64_t border = 0; border < borders; ++border)
          std::memcpy(slot(plane, border), at(x, plane, start(border + 1) - reach),
                      static_cast<size_t>(2 * reach * bytes));
    }
    run(pool, planes * bands, [&](int64_t i) {
      const int64_t plane = i / bands, band = i % bands;
      Rows job{};
      job.x = at(x, plane, 0);
      job.y = const_cast<char*>(at(y, plane, 0));
      job.height = height;
      job.width = width;
      job.begin = start(band);
      job.end = start(band + 1);
      if (band > 0) job.above = borders > 0 ? slot(plane, band - 1) : at(x, plane, job.begin - reach);
      if (band + 1 < bands) job.below = borders > 0 ? slot(plane, band) + reach * bytes : at(x, plane, job.end);
      job.taps = taps + plane % taps_period * taps_stride;
      job.scratch = scratch(scratch_floats(width, block, k));
      kernel(job);
    });
  }

  static constexpr int64_t enough = 64;     // planes that keep the threads of any machine busy
  static constexpr int64_t least = 16384;   // elements that are worth a task of their own
};

// An image at a time.
void run_images(const Table<Image>& table, const Image& whole, const Shape& shape, int64_t k, const Pool& pool) {
  const int64_t size = shape.h * shape.w * shape.c;  // 0: the parameters' gradients are 0, and are written
  run(pool, shape.n, [&](int64_t n) {
    Image job = whole;
    job.x += n * size;
    job.result += n * size;
    if (job.gradient != nullptr) job.gradient += n * size;
    if (job.gate != nullptr) job.gate += n * size;
    if (job.of_taps != nullptr) job.of_taps += n * shape.c * (1 + k * k);
    job.scratch = scratch(image_floats(shape.h, shape.w, kernels().lanes, k));
    table.of[k / 2](job);
  });
}

void check(int64_t channels, int64_t expected) {
  if (channels != expected)
    throw std::invalid_argument("Sparta: x has " + std::to_string(channels) + " channels; expected " +
                                std::to_string(expected));
}

}  // namespace

Pool serial() { return {nullptr, run_serially}; }

Function::Function(const void* weight, const void* bias, Type type, int64_t c, int64_t k, int64_t block)
    : channels_(c), size_(k), block_(block == 0 ? kernels().lanes : block) {
  if (!supports(k)) throw std::invalid_argument("Sparta: kernel size " + std::to_string(k) + "; expected 1, 3, 5 or 7");
  const int64_t taps = 1 + k * k;
  rows_.resize(static_cast<size_t>(c * taps));
  blocks_.assign(static_cast<size_t>(round_up(c, block_) * taps), 0.0f);
  for (int64_t channel = 0; channel < c; ++channel) {
    float* const block_taps = blocks_.data() + channel / block_ * taps * block_ + channel % block_;
    for (int64_t t = 0; t < taps; ++t) {
      const float value = t == 0 ? to_float(bias, type, channel) : to_float(weight, type, channel * k * k + t - 1);
      rows_[static_cast<size_t>(channel * taps + t)] = value;
      block_taps[t * block_] = value;
    }
  }
}

void apply(const Function& function, Type type, const void* x, void* y, const Shape& shape, const Pool& pool) {
  check(shape.c, function.channels());
  if (shape.n == 0 || shape.c == 0 || shape.h == 0 || shape.w == 0) return;
  const Kernels& chosen = kernels();
  const int64_t k = function.size(), taps = 1 + k * k, size = shape.h * shape.w;
  const auto t = static_cast<size_t>(type);
  const auto s = static_cast<size_t>(k / 2);
  if (shape.w < chosen.lanes && size <= 4096) {
    const int64_t groups = round_up(shape.c, chosen.lanes) / chosen.lanes;
    run(pool, shape.n * groups, [&](int64_t i) {
      const int64_t first = i % groups * chosen.lanes;
      const int64_t offset = ((i / groups) * shape.c + first) * size * static_cast<int64_t>(size_of(type));
      Planes job{};
      job.x = static_cast<const char*>(x) + offset;
      job.y = static_cast<char*>(y) + offset;
      job.count = std::min(chosen.lanes, shape.c - first);
      job.height = shape.h;
      job.width = shape.w;
      job.taps = function.blocks_.data() + first * taps;
      job.scratch = scratch(planes_floats(shape.h, shape.w, chosen.lanes, k));
      chosen.planes[t].of[s](job);
    });
    return;
  }
  RowCall{chosen.rows[t].of[s], x, y, shape.n * shape.c, shape.h, shape.w, 1, k, size_of(type),
          function.rows_.data(), taps, shape.c}(pool);
}

void apply_blocked(const Function& function, const float* x, float* y, const Shape& shape, const Pool& pool) {
  const int64_t block = function.block_;
  check(shape.c, round_up(function.channels(), block));
  if (shape.n == 0 || shape.c == 0 || shape.h == 0 || shape.w == 0) return;
  const int64_t k = function.size(), groups = shape.c / block;
  RowCall{blocked_kernels(block).of[k / 2], x, y, shape.n * groups, shape.h, shape.w, block, k, 4,
          function.blocks_.data(), (1 + k * k) * block, groups}(pool);
}

void apply_last(const Function& function, const float* x, float* y, float* gate, const Shape& shape,
                const Pool& pool) {
  check(shape.c, function.channels());
  const Image job{x, nullptr, y, gate, nullptr, shape.h, shape.w, shape.c, function.blocks_.data(), nullptr};
  run_images(kernels().image, job, shape, function.size(), pool);
}

void gradients_last(const Function& function, const float* x, const float* gate, const float* gradient, float* of_x,
                    float* of_taps, const Shape& shape, const Pool& pool) {
  check(shape.c, function.channels());
  const Image job{x, gradient, of_x, const_cast<float*>(gate), of_taps, shape.h, shape.w, shape.c,
                  function.blocks_.data(), nullptr};
  run_images(kernels().gradients, job, shape, function.size(), pool);
}

const char* instructions() { return kernels().name; }

void exponential(const float* x, float* y, size_t count) { kernels().exponential(x, y, count); }

}  // namespace sparta
