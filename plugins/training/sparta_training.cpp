// What training calls of the kernels, as C functions; part of libsparta_ort, which needs ONNX Runtime only when
// that loads it. robust_export.training.fused_sparta makes a function of torch's autograd of them.

#include <cstdint>
#include <exception>

#include "sparta.h"

namespace {

template <class Body>
int done(const Body& body) {
  try {
    body();
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

}  // namespace

// y = Sparta(x), for n images [h, w, c] of float32 with weight [c, k, k] and bias [c], and their gate, or null. 0:
// there is no such kernel, or no memory.
extern "C" __attribute__((visibility("default"))) int sparta_forward(const float* weight, const float* bias,
                                                                     const float* x, float* y, float* gate, int64_t n,
                                                                     int64_t c, int64_t h, int64_t w, int64_t k) {
  return done([&] {
    const sparta::Function function(weight, bias, sparta::Type::float32, c, k);
    sparta::apply_last(function, x, y, gate, {n, c, h, w}, sparta::serial());
  });
}

// From the gradient in y those in x, and in bias and weight: of_taps [n, c, 1 + k * k], or null.
extern "C" __attribute__((visibility("default"))) int sparta_backward(const float* weight, const float* bias,
                                                                      const float* x, const float* gate,
                                                                      const float* gradient, float* of_x,
                                                                      float* of_taps, int64_t n, int64_t c, int64_t h,
                                                                      int64_t w, int64_t k) {
  return done([&] {
    const sparta::Function function(weight, bias, sparta::Type::float32, c, k);
    sparta::gradients_last(function, x, gate, gradient, of_x, of_taps, {n, c, h, w}, sparta::serial());
  });
}
