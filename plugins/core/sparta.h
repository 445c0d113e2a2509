// Sparta on a CPU: y = relu(x) * (2 * sigmoid(w (*) x + b)).
//
//   x, y  [N, C, H, W]   float32, float16 or bfloat16; arithmetic is float32 whatever they are
//   w     [C, 1, k, k]   depthwise kernel, k = 1, 3, 5 or 7
//   b     [C]
//   (*)   depthwise cross-correlation, stride 1, zero padding k / 2
//
// y may be x: every plane is read before it is overwritten. NaN stays NaN, and spreads to the
// neighbours whose gate reads it. No framework header, no allocation that outlives a call but one
// scratch buffer a thread, no locks.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sparta {

enum class Type { float32, float16, bfloat16 };

struct Shape {
  int64_t n, c, h, w;
};

// Runs task(argument, i) for every i in [0, count), in any order, on as many threads as it likes.
struct Pool {
  void* context;
  void (*run)(void* context, void (*task)(void* argument, size_t i), size_t count, void* argument);
};

// One after the other, on the thread that calls.
Pool serial();

// Whether there is a kernel of this size.
constexpr bool supports(int64_t k) { return k == 1 || k == 3 || k == 5 || k == 7; }

// The learnt parameters, packed once for the kernels. Copies what it is given.
class Function {
 public:
  // weight [c, k, k] and bias [c] of the given type; block 8 or 16 for apply_blocked, 0 for apply.
  // Throws std::invalid_argument for a k that has no kernel.
  Function(const void* weight, const void* bias, Type type, int64_t c, int64_t k, int64_t block = 0);

  int64_t channels() const { return channels_; }
  int64_t size() const { return size_; }
  int64_t block() const { return block_; }

 private:
  friend void apply(const Function&, Type, const void*, void*, const Shape&, const Pool&);
  friend void apply_blocked(const Function&, const float*, float*, const Shape&, const Pool&);
  friend void apply_last(const Function&, const float*, float*, float*, const Shape&, const Pool&);
  friend void gradients_last(const Function&, const float*, const float*, const float*, float*, float*, const Shape&,
                             const Pool&);
  int64_t channels_, size_, block_;
  std::vector<float> rows_;    // [c][1 + k * k]: the bias, then the taps
  std::vector<float> blocks_;  // [c / block][1 + k * k][block], padded with zeros
};

// y = Sparta(x) for planes in the order [N, C, H, W]; shape.c is the function's channels.
// Throws std::invalid_argument where it is not, and std::bad_alloc.
void apply(const Function& function, Type type, const void* x, void* y, const Shape& shape, const Pool& pool);

// The same in ONNX Runtime's blocked order, [N, C / block, H, W, block]; shape.c is the function's
// channels, rounded up to a multiple of its block. The results of the channels that pad are 0.
void apply_blocked(const Function& function, const float* x, float* y, const Shape& shape, const Pool& pool);

// The same in the order [N, H, W, C], for training; the function is of block 0. y is not x. The gate,
// 2 sigmoid(w (*) x + b), is kept where it is not null.
void apply_last(const Function& function, const float* x, float* y, float* gate, const Shape& shape,
                const Pool& pool);

// From x, the gate and the gradient in y [N, H, W, C] those in x, of the same order, and for each image in the
// parameters: of_taps [N, C, 1 + k * k], the bias first; null where they are not wanted.
void gradients_last(const Function& function, const float* x, const float* gate, const float* gradient, float* of_x,
                    float* of_taps, const Shape& shape, const Pool& pool);

// "avx512", "avx2" or "portable": the instructions that were chosen for this CPU when the library was
// loaded: the best there are, unless SPARTA_ISA in the environment names others that there are.
const char* instructions();

// y[i] = exp(x[i]), as the gate computes it: within 2.5 units in the last place for every float32 (1.5
// where the result is subnormal); infinities and NaN as std::exp gives them.
void exponential(const float* x, float* y, size_t count);

}  // namespace sparta
