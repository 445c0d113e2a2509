// What cuda_on_cpu.h sees: a kernel that reverses every block by way of shared memory, right or with one fault.
// Whoever runs this with a fault expects it to fail.
//
//   harness_test right | no-barrier | divergent-barrier | beyond-shared | misaligned

#include <cstdio>
#include <cstring>
#include <random>

#include "cuda_on_cpu.h"

namespace {

enum class Fault { none, no_barrier, divergent_barrier, beyond_shared, misaligned };

constexpr unsigned threads = 32;

struct alignas(16) Four {
  float at[4];
};

__global__ void reverse(Fault fault, const float* x, float* y) {
  __shared__ float block[threads];
  const unsigned own = threadIdx.x, start = blockIdx.x * threads;
  block[fault == Fault::beyond_shared ? own + 1 : own] = x[start + own];
  if (fault == Fault::divergent_barrier ? own % 2 == 0 : fault != Fault::no_barrier) __syncthreads();
  y[start + own] = block[threads - 1 - own];
  if (fault == Fault::misaligned && own < threads - 4)
    y[start + own] = reinterpret_cast<const Four*>(x + start + own)->at[0];
}

}  // namespace

int main(int argc, char** argv) {
  const char* const names[] = {"right", "no-barrier", "divergent-barrier", "beyond-shared", "misaligned"};
  Fault fault = Fault::none;
  for (int i = 0; i < 5; ++i)
    if (argc > 1 && std::strcmp(argv[1], names[i]) == 0) fault = static_cast<Fault>(i);
  using cuda_on_cpu::Order;
#if defined(__SANITIZE_THREAD__)
  const Order orders[] = {Order::threads};
#else
  const Order orders[] = {Order::forward, Order::reverse, Order::random};
#endif
  constexpr unsigned blocks = 3;
  std::mt19937 random(0);
  for (const Order order : orders) {
    std::unique_ptr<Four[]> in = std::make_unique<Four[]>(blocks * threads / 4);
    float* const x = in[0].at;
    float y[blocks * threads] = {};
    for (unsigned i = 0; i < blocks * threads; ++i) x[i] = static_cast<float>(i);
    cuda_on_cpu::launch(blocks, threads, order, random, [&] { reverse(fault, x, y); });
    for (unsigned i = 0; i < blocks * threads; ++i)
      if (y[i] != x[i / threads * threads + threads - 1 - i % threads]) {
        std::printf("FAILED y[%u] is %g\n", i, static_cast<double>(y[i]));
        return 1;
      }
  }
  std::printf("ok\n");
}
