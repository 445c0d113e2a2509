// The part of CUDA that a kernel's source needs to be compiled by g++ and run on a CPU, one block after the other. Every
// CUDA thread is a fibre, or with Order::threads an operating system thread, which ThreadSanitizer can check.
// __syncthreads() waits until all threads of the block have arrived. The caller selects the order in which fibres and
// blocks run, because the result of a kernel must not depend on it.

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

#include <cuda_bf16.h>  // g++ compiles both headers unchanged
#include <cuda_fp16.h>

#ifndef __global__
#define __global__
#define __device__
#endif
#undef __shared__
#define __shared__ static  // only one block runs at a time
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

  // Call body() once for every thread of one block.
  void run(const std::function<void()>& body, Order order, std::mt19937& random) {
    body_ = &body;
    if (order == Order::threads) return run_threads();
    for (Fibre& fibre : fibres_) {
      if (fibre.stack == nullptr) fibre.stack = std::make_unique<char[]>(stack_size);
      fibre.finished = false;
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.get();
      fibre.context.uc_stack.ss_size = stack_size;
      fibre.context.uc_link = &scheduler_;
      makecontext(&fibre.context, reinterpret_cast<void (*)()>(&Block::enter), 0);
    }
    std::vector<size_t> sequence(fibres_.size());
    std::iota(sequence.begin(), sequence.end(), size_t{0});
    if (order == Order::reverse) std::reverse(sequence.begin(), sequence.end());
    for (size_t remaining = fibres_.size(); remaining > 0;) {
      if (order == Order::random) std::shuffle(sequence.begin(), sequence.end(), random);
      const size_t before = remaining;
      for (const size_t i : sequence) {
        if (fibres_[i].finished) continue;
        threadIdx = {static_cast<unsigned>(i), 0, 0};
        current_ = this;
        running_ = i;
        swapcontext(&scheduler_, &fibres_[i].context);
        if (fibres_[i].finished) --remaining;
      }
      // Either all unfinished fibres have arrived at a barrier, or all have finished.
      if (remaining != 0 && remaining != before) {
        std::printf("FAILED a barrier that only %zu of %zu threads reach\n", remaining, fibres_.size());
        std::exit(1);
      }
    }
  }

  static void barrier() {
    Block* const block = current_;
    if (block->barrier_) {
      pthread_barrier_wait(block->barrier_.get());
    } else {
      swapcontext(&block->fibres_[block->running_].context, &block->scheduler_);
    }
  }

 private:
  struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool finished = false;
  };

  void run_threads() {
    barrier_ = std::make_unique<pthread_barrier_t>();
    pthread_barrier_init(barrier_.get(), nullptr, static_cast<unsigned>(fibres_.size()));
    std::vector<std::thread> threads;
    const Index block_index = blockIdx;
    for (unsigned i = 0; i < fibres_.size(); ++i)
      threads.emplace_back([this, block_index, i] {
        blockIdx = block_index;
        threadIdx = {i, 0, 0};
        current_ = this;
        (*body_)();
      });
    for (std::thread& thread : threads) thread.join();
    pthread_barrier_destroy(barrier_.get());
    barrier_.reset();
  }

  static void enter() {
    (*current_->body_)();
    current_->fibres_[current_->running_].finished = true;
  }

  static constexpr size_t stack_size = 64 * 1024;
  static inline thread_local Block* current_ = nullptr;
  std::vector<Fibre> fibres_;
  ucontext_t scheduler_{};
  const std::function<void()>* body_ = nullptr;
  size_t running_ = 0;  // the index of the running fibre
  std::unique_ptr<pthread_barrier_t> barrier_;  // with Order::threads
};

// Call body() for every thread of every block of a grid.
inline void launch(unsigned blocks, unsigned threads, Order order, std::mt19937& random,
                   const std::function<void()>& body) {
  Block block(threads);
  std::vector<unsigned> sequence(blocks);
  std::iota(sequence.begin(), sequence.end(), 0u);
  if (order == Order::reverse) std::reverse(sequence.begin(), sequence.end());
  if (order == Order::random) std::shuffle(sequence.begin(), sequence.end(), random);
  for (const unsigned i : sequence) {
    blockIdx = {i, 0, 0};
    block.run(body, order, random);
  }
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::Block::barrier(); }
