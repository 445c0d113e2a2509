// C functions for training, part of libsparta_ort, which does not need ONNX Runtime to be loaded.
// robust_export.training.fused_sparta calls them by ctypes.

#include <cstdint>
#include <exception>

#include "sparta.h"

namespace {

// Return 1, or 0 if `body` throws: the kernel size is not supported, or memory is exhausted.
template <class Body>
int succeeds(const Body& body) {
  try {
    body();
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

}  // namespace

// Compute y = Sparta(x) for n float32 images [h, w, c] with weight [c, k, k] and bias [c]. gate [n, h, w, c] receives
// 2 * sigmoid(w (*) x + b); it may be null. Return 1 on success, 0 on failure.
extern "C" __attribute__((visibility("default"))) int sparta_forward(const float* weight, const float* bias,
                                                                     const float* x, float* y, float* gate, int64_t n,
                                                                     int64_t c, int64_t h, int64_t w, int64_t k) {
  return succeeds([&] {
    const sparta::PackedWeights weights(weight, bias, sparta::Type::float32, c, k);
    sparta::forward_nhwc(weights, x, y, gate, {n, c, h, w}, sparta::serial_pool());
  });
}

// Compute grad_x [n, h, w, c] and, unless null, grad_params [n, c, 1 + k * k]: per image grad_bias, then grad_weight.
// Return 1 on success, 0 on failure.
extern "C" __attribute__((visibility("default"))) int sparta_backward(const float* weight, const float* bias,
                                                                      const float* x, const float* gate,
                                                                      const float* grad_y, float* grad_x,
                                                                      float* grad_params, int64_t n, int64_t c,
                                                                      int64_t h, int64_t w, int64_t k) {
  return succeeds([&] {
    const sparta::PackedWeights weights(weight, bias, sparta::Type::float32, c, k);
    sparta::backward_nhwc(weights, x, gate, grad_y, grad_x, grad_params, {n, c, h, w}, sparta::serial_pool());
  });
}
