// Tests that cuda_on_cpu.h and the sanitizers detect faults: a kernel reverses every block through shared memory,
// correctly or with one fault. With a fault the program must fail.
//
//   harness_test correct | no-barrier | divergent-barrier | beyond-shared | misaligned

#include <cstdio>
#include <cstring>
#include <random>

#include "cuda_on_cpu.h"

namespace {

enum class Fault { none, no_barrier, divergent_barrier, beyond_shared, misaligned };

constexpr unsigned threads = 32;

struct alignas(16) Float4 {
  float values[4];
};

__global__ void reverse(Fault fault, const float* x, float* y) {
  __shared__ float block[threads];
  const unsigned thread = threadIdx.x, start = blockIdx.x * threads;
  block[fault == Fault::beyond_shared ? thread + 1 : thread] = x[start + thread];
  if (fault == Fault::divergent_barrier ? thread % 2 == 0 : fault != Fault::no_barrier) __syncthreads();
  y[start + thread] = block[threads - 1 - thread];
  if (fault == Fault::misaligned && thread < threads - 4)
    y[start + thread] = reinterpret_cast<const Float4*>(x + start + thread)->values[0];
}

}  // namespace

int main(int argc, char** argv) {
  const char* const names[] = {"correct", "no-barrier", "divergent-barrier", "beyond-shared", "misaligned"};
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
    std::unique_ptr<Float4[]> in = std::make_unique<Float4[]>(blocks * threads / 4);
    float* const x = in[0].values;
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
