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

const Kernels& choose_kernels() {
  const Kernels* available[3] = {nullptr, nullptr, &portable_kernels()};  // the best first
#if defined(__x86_64__)
  __builtin_cpu_init();
  // F16C is not tested, because clang 14 does not know it by name: every CPU with AVX2 has it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) available[0] = avx512_kernels();
  if (avx2) available[1] = avx2_kernels();
#endif
  const char* const requested = std::getenv("SPARTA_ISA");
  const Kernels* best = nullptr;
  for (const Kernels* const candidate : available) {
    if (candidate == nullptr) continue;
    if (requested != nullptr && std::strcmp(requested, candidate->name) == 0) return *candidate;
    if (best == nullptr) best = candidate;
  }
  return *best;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

// Return the kernels for the blocked layout: the chosen ones, or narrower ones if their vectors exceed a block.
const BySize<RowsArgs>& block_kernels(int64_t block) {
  const Kernels* fitting = &kernels();
  if (fitting->lanes > block && avx2_kernels() != nullptr) fitting = avx2_kernels();
  if (fitting->lanes > block) fitting = &portable_kernels();
  return block == 8 ? fitting->rows_block8 : fitting->rows_block16;
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

// Return this thread's scratch buffer, which is kept for the next call.
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

// Call body(i) for every i in [0, count) on the pool. Exceptions must not pass through a pool of C functions, so
// std::bad_alloc, the only one that a body can throw, is thrown again here.
template <class Body>
void run(const Pool& pool, int64_t count, const Body& body) {
  struct Argument {
    const Body& body;
    std::atomic<bool> failed;
  } argument{body, {false}};
  const auto task = [](void* p, size_t i) {
    auto& own = *static_cast<Argument*>(p);
    try {
      own.body(static_cast<int64_t>(i));
    } catch (const std::bad_alloc&) {
      own.failed = true;
    }
  };
  pool.run(pool.context, task, static_cast<size_t>(count), &argument);
  if (argument.failed) throw std::bad_alloc();
}

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Run a rows kernel on every feature map, or block of feature maps. If there are few of them, each is split into
// bands of rows so that every thread has work. In place, the rows that a band reads from its neighbours are saved
// before anything is written.
struct RowsCall {
  void (*kernel)(const RowsArgs&);
  const void* x;
  void* y;
  int64_t maps, height, width, block, k;
  size_t element_bytes;
  const float* weights;
  int64_t weights_stride, weights_period;  // map m has the weights at (m % weights_period) * weights_stride

  void operator()(const Pool& pool) const {
    const int64_t padding = k / 2;
    const int64_t row_elements = width * block;
    const int64_t row_bytes = row_elements * static_cast<int64_t>(element_bytes);
    int64_t bands = std::min(max_tasks / maps, height * row_elements / min_task_elements);
    bands = std::max<int64_t>(1, std::min(bands, height / std::max<int64_t>(padding, 1)));
    const auto band_start = [&](int64_t band) { return height * band / bands; };
    const auto row_address = [&](const void* base, int64_t map, int64_t i) {
      return static_cast<const char*>(base) + (map * height + i) * row_bytes;
    };
    // Per feature map and border between two bands: `padding` rows above the border, then `padding` rows below it.
    std::vector<char> saved;
    const int64_t borders = x == y ? bands - 1 : 0;
    const auto saved_rows = [&](int64_t map, int64_t border) {
      return saved.data() + (map * borders + border) * 2 * padding * row_bytes;
    };
    if (borders > 0 && padding > 0) {
      saved.resize(static_cast<size_t>(maps * borders * 2 * padding * row_bytes));
      for (int64_t map = 0; map < maps; ++map)
        for (int64_t border = 0; border < borders; ++border)
          std::memcpy(saved_rows(map, border), row_address(x, map, band_start(border + 1) - padding),
                      static_cast<size_t>(2 * padding * row_bytes));
    }
    run(pool, maps * bands, [&](int64_t i) {
      const int64_t map = i / bands, band = i % bands;
      RowsArgs args{};
      args.x = row_address(x, map, 0);
      args.y = const_cast<char*>(row_address(y, map, 0));
      args.height = height;
      args.width = width;
      args.begin = band_start(band);
      args.end = band_start(band + 1);
      if (band > 0) args.above = borders > 0 ? saved_rows(map, band - 1) : row_address(x, map, args.begin - padding);
      if (band + 1 < bands)
        args.below = borders > 0 ? saved_rows(map, band) + padding * row_bytes : row_address(x, map, args.end);
      args.weights = weights + map % weights_period * weights_stride;
      args.scratch = scratch(rows_scratch_floats(width, block, k));
      kernel(args);
    });
  }

  static constexpr int64_t max_tasks = 64;             // more are not needed to keep the threads busy
  static constexpr int64_t min_task_elements = 16384;  // fewer are not worth a task of their own
};

// Run an image kernel on every image of a batch.
void run_images(const BySize<ImageArgs>& table, const ImageArgs& batch, const Shape& shape, int64_t k,
                const Pool& pool) {
  const int64_t size = shape.h * shape.w * shape.c;  // if it is 0, grad_params are still written, as zeros
  run(pool, shape.n, [&](int64_t n) {
    ImageArgs args = batch;
    args.x += n * size;
    args.result += n * size;
    if (args.grad_y != nullptr) args.grad_y += n * size;
    if (args.gate != nullptr) args.gate += n * size;
    if (args.grad_params != nullptr) args.grad_params += n * shape.c * (1 + k * k);
    args.scratch = scratch(image_scratch_floats(shape.h, shape.w, kernels().lanes, k));
    table.kernel[k / 2](args);
  });
}

void check_channels(int64_t channels, int64_t expected) {
  if (channels != expected)
    throw std::invalid_argument("Sparta: x has " + std::to_string(channels) + " channels; expected " +
                                std::to_string(expected));
}

}  // namespace

Pool serial_pool() { return {nullptr, run_serially}; }

PackedWeights::PackedWeights(const void* weight, const void* bias, Type type, int64_t c, int64_t k, int64_t block)
    : channels_(c), kernel_size_(k), block_(block == 0 ? kernels().lanes : block) {
  if (!is_supported_kernel_size(k))
    throw std::invalid_argument("Sparta: kernel size " + std::to_string(k) + "; expected 1, 3, 5 or 7");
  const int64_t params = 1 + k * k;
  per_channel_.resize(static_cast<size_t>(c * params));
  per_block_.assign(static_cast<size_t>(round_up(c, block_) * params), 0.0f);
  for (int64_t channel = 0; channel < c; ++channel) {
    float* const in_block = per_block_.data() + channel / block_ * params * block_ + channel % block_;
    for (int64_t t = 0; t < params; ++t) {
      const float value = t == 0 ? to_float(bias, type, channel) : to_float(weight, type, channel * k * k + t - 1);
      per_channel_[static_cast<size_t>(channel * params + t)] = value;
      in_block[t * block_] = value;
    }
  }
}

void forward_nchw(const PackedWeights& weights, Type type, const void* x, void* y, const Shape& shape,
                  const Pool& pool) {
  check_channels(shape.c, weights.channels());
  if (shape.n == 0 || shape.c == 0 || shape.h == 0 || shape.w == 0) return;
  const Kernels& chosen = kernels();
  const int64_t k = weights.kernel_size(), params = 1 + k * k, size = shape.h * shape.w;
  const auto t = static_cast<size_t>(type);
  const auto s = static_cast<size_t>(k / 2);
  if (shape.w < chosen.lanes && size <= 4096) {  // rows shorter than a vector: one channel per lane instead
    const int64_t groups = round_up(shape.c, chosen.lanes) / chosen.lanes;
    run(pool, shape.n * groups, [&](int64_t i) {
      const int64_t first = i % groups * chosen.lanes;
      const int64_t offset = ((i / groups) * shape.c + first) * size * static_cast<int64_t>(size_of(type));
      SmallMapsArgs args{};
      args.x = static_cast<const char*>(x) + offset;
      args.y = static_cast<char*>(y) + offset;
      args.channels = std::min(chosen.lanes, shape.c - first);
      args.height = shape.h;
      args.width = shape.w;
      args.weights = weights.per_block_.data() + first * params;
      args.scratch = scratch(small_maps_scratch_floats(shape.h, shape.w, chosen.lanes, k));
      chosen.small_maps[t].kernel[s](args);
    });
    return;
  }
  RowsCall{chosen.rows[t].kernel[s], x, y, shape.n * shape.c, shape.h, shape.w, 1, k, size_of(type),
           weights.per_channel_.data(), params, shape.c}(pool);
}

void forward_nchwc(const PackedWeights& weights, const float* x, float* y, const Shape& shape, const Pool& pool) {
  const int64_t block = weights.block_;
  check_channels(shape.c, round_up(weights.channels(), block));
  if (shape.n == 0 || shape.c == 0 || shape.h == 0 || shape.w == 0) return;
  const int64_t k = weights.kernel_size(), groups = shape.c / block;
  RowsCall{block_kernels(block).kernel[k / 2], x, y, shape.n * groups, shape.h, shape.w, block, k, 4,
           weights.per_block_.data(), (1 + k * k) * block, groups}(pool);
}

void forward_nhwc(const PackedWeights& weights, const float* x, float* y, float* gate, const Shape& shape,
                  const Pool& pool) {
  check_channels(shape.c, weights.channels());
  const ImageArgs args{x, nullptr, y, gate, nullptr, shape.h, shape.w, shape.c, weights.per_block_.data(), nullptr};
  run_images(kernels().forward_image, args, shape, weights.kernel_size(), pool);
}

void backward_nhwc(const PackedWeights& weights, const float* x, const float* gate, const float* grad_y,
                   float* grad_x, float* grad_params, const Shape& shape, const Pool& pool) {
  check_channels(shape.c, weights.channels());
  const ImageArgs args{x, grad_y, grad_x, const_cast<float*>(gate), grad_params, shape.h, shape.w, shape.c,
                       weights.per_block_.data(), nullptr};
  run_images(kernels().backward_image, args, shape, weights.kernel_size(), pool);
}

const char* instructions() { return kernels().name; }

void exponential(const float* x, float* y, size_t count) { kernels().exponential(x, y, count); }

}  // namespace sparta
