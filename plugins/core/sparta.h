// Sparta on a CPU: y = relu(x) * (2 * sigmoid(w (*) x + b)).
//
//   x, y  [N, C, H, W]   float32, float16 or bfloat16; the arithmetic is float32 for all of them
//   w     [C, 1, k, k]   depthwise kernel, k = 1, 3, 5 or 7
//   b     [C]
//   (*)   depthwise cross-correlation, stride 1, zero padding k / 2
//
// NaN in x gives NaN in y there and at every position whose window covers it. The code includes no framework
// header, takes no lock, and keeps no memory after a call but one scratch buffer per thread.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sparta {

enum class Type { float32, float16, bfloat16 };

struct Shape {
  int64_t n, c, h, w;
};

// Calls task(argument, i) for every i in [0, count), in any order and on any number of threads.
struct Pool {
  void* context;
  void (*run)(void* context, void (*task)(void* argument, size_t i), size_t count, void* argument);
};

// Return a pool that runs all tasks one after the other on the calling thread.
Pool serial_pool();

constexpr bool is_supported_kernel_size(int64_t k) { return k == 1 || k == 3 || k == 5 || k == 7; }

// A copy of weight and bias in the layouts that the kernels read.
class PackedWeights {
 public:
  // Pack weight [c, k, k] and bias [c] of the given type. `block` is the channels per block (8 or 16) for
  // forward_nchwc, and 0 for the other functions. Throws std::invalid_argument if k is not supported.
  PackedWeights(const void* weight, const void* bias, Type type, int64_t c, int64_t k, int64_t block = 0);

  int64_t channels() const { return channels_; }
  int64_t kernel_size() const { return kernel_size_; }
  int64_t block() const { return block_; }

 private:
  friend void forward_nchw(const PackedWeights&, Type, const void*, void*, const Shape&, const Pool&);
  friend void forward_nchwc(const PackedWeights&, const float*, float*, const Shape&, const Pool&);
  friend void forward_nhwc(const PackedWeights&, const float*, float*, float*, const Shape&, const Pool&);
  friend void backward_nhwc(const PackedWeights&, const float*, const float*, const float*, float*, float*,
                            const Shape&, const Pool&);
  int64_t channels_, kernel_size_, block_;
  std::vector<float> per_channel_;  // [c][1 + k * k]: the bias, then the weight
  std::vector<float> per_block_;    // [ceil(c / block)][1 + k * k][block]: the same, padded with zeros
};

// Compute y = Sparta(x) for x [N, C, H, W]. y may be x. shape.c must be weights.channels().
// Throws std::invalid_argument if it is not, and std::bad_alloc.
void forward_nchw(const PackedWeights& weights, Type type, const void* x, void* y, const Shape& shape,
                  const Pool& pool);

// Compute y = Sparta(x) in ONNX Runtime's blocked layout [N, C / block, H, W, block]. y may be x. shape.c must be
// weights.channels() rounded up to a multiple of the block. Padding channels of y are 0.
void forward_nchwc(const PackedWeights& weights, const float* x, float* y, const Shape& shape, const Pool& pool);

// Compute y = Sparta(x) for x [N, H, W, C], for training. `weights` are packed with block 0. y must not be x.
// gate [N, H, W, C] receives 2 * sigmoid(w (*) x + b) for backward_nhwc; it may be null.
void forward_nhwc(const PackedWeights& weights, const float* x, float* y, float* gate, const Shape& shape,
                  const Pool& pool);

// Compute the gradients of forward_nhwc from x, gate and grad_y [N, H, W, C].
// grad_x [N, H, W, C]; grad_params [N, C, 1 + k * k] holds per image grad_bias, then grad_weight, and may be null.
void backward_nhwc(const PackedWeights& weights, const float* x, const float* gate, const float* grad_y,
                   float* grad_x, float* grad_params, const Shape& shape, const Pool& pool);

// Return the instruction set that was chosen for this CPU when the library was loaded: "avx512", "avx2" or
// "portable". It is the best one available, or the one named by SPARTA_ISA in the environment if available.
const char* instructions();

// y[i] = exp(x[i]) as the gate computes it: within 2.5 units in the last place for every float32 (1.5 where the
// result is subnormal). Infinities and NaN give what std::exp gives.
void exponential(const float* x, float* y, size_t count);

}  // namespace sparta
