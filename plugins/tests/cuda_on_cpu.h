// Enough of CUDA for g++ to run a kernel's own source on a CPU, one block after the other. Every thread of a
// block is a fibre, or with `threads` a thread of the operating system, for ThreadSanitizer to watch.
// __syncthreads() lets nobody go on before all have arrived. In which order fibres and blocks run is the
// caller's, since a kernel must not depend on it.

#pragma once

#include <pthread.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include <cuda_bf16.h>  // g++ compiles both as they are
#include <cuda_fp16.h>

#ifndef __global__
#define __global__
#define __device__
#endif
#undef __shared__
#define __shared__ static  // one block at a time
#undef __launch_bounds__
#define __launch_bounds__(...)

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline thread_local Index threadIdx, blockIdx;

namespace cuda_on_cpu {

enum class Order { forward, reverse, random, threads };

class Block {
 public:
  explicit Block(unsigned threads) : fibres_(threads) {}

  // Runs `body` once for every thread of one block.
  void run(const std::function<void()>& body, Order order, std::mt19937& random) {
    body_ = &body;
    if (order == Order::threads) return run_threads();
    for (Fibre& fibre : fibres_) {
      if (fibre.stack == nullptr) fibre.stack = std::make_unique<char[]>(stack_size);
      fibre.done = false;
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.get();
      fibre.context.uc_stack.ss_size = stack_size;
      fibre.context.uc_link = &scheduler_;
      makecontext(&fibre.context, reinterpret_cast<void (*)()>(&Block::enter), 0);
    }
    std::vector<size_t> turn(fibres_.size());
    std::iota(turn.begin(), turn.end(), size_t{0});
    if (order == Order::reverse) std::reverse(turn.begin(), turn.end());
    for (size_t left = fibres_.size(); left > 0;) {
      if (order == Order::random) std::shuffle(turn.begin(), turn.end(), random);
      const size_t before = left;
      for (const size_t i : turn) {
        if (fibres_[i].done) continue;
        threadIdx = {static_cast<unsigned>(i), 0, 0};
        current_ = this;
        running_ = i;
        swapcontext(&scheduler_, &fibres_[i].context);
        if (fibres_[i].done) --left;
      }
      // All of them must have come to the barrier, or none.
      if (left != 0 && left != before) {
        std::printf("FAILED a barrier that only %zu of %zu threads come to\n", left, fibres_.size());
        std::exit(1);
      }
    }
  }

  static void barrier() {
    Block* const own = current_;
    if (own->waiting_) {
      pthread_barrier_wait(own->waiting_.get());
    } else {
      swapcontext(&own->fibres_[own->running_].context, &own->scheduler_);
    }
  }

 private:
  struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done = false;
  };

  void run_threads() {
    waiting_ = std::make_unique<pthread_barrier_t>();
    pthread_barrier_init(waiting_.get(), nullptr, static_cast<unsigned>(fibres_.size()));
    std::vector<std::thread> threads;
    const Index block = blockIdx;
    for (unsigned i = 0; i < fibres_.size(); ++i)
      threads.emplace_back([this, block, i] {
        blockIdx = block;
        threadIdx = {i, 0, 0};
        current_ = this;
        (*body_)();
      });
    for (std::thread& thread : threads) thread.join();
    pthread_barrier_destroy(waiting_.get());
    waiting_.reset();
  }

  static void enter() {
    (*current_->body_)();
    current_->fibres_[current_->running_].done = true;
  }

  static constexpr size_t stack_size = 64 * 1024;
  static inline thread_local Block* current_ = nullptr;
  std::vector<Fibre> fibres_;
  ucontext_t scheduler_{};
  const std::function<void()>* body_ = nullptr;
  size_t running_ = 0;
  std::unique_ptr<pthread_barrier_t> waiting_;
};

// Runs `body` for every thread of every block of a grid.
inline void launch(unsigned blocks, unsigned threads, Order order, std::mt19937& random,
                   const std::function<void()>& body) {
  Block block(threads);
  std::vector<unsigned> turn(blocks);
  std::iota(turn.begin(), turn.end(), 0u);
  if (order == Order::reverse) std::reverse(turn.begin(), turn.end());
  if (order == Order::random) std::shuffle(turn.begin(), turn.end(), random);
  for (const unsigned i : turn) {
    blockIdx = {i, 0, 0};
    block.run(body, order, random);
  }
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::Block::barrier(); }
