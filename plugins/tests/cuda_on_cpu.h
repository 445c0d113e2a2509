// Enough of CUDA for g++ to run a kernel's own source on a CPU, one block after the other. Every thread of a
// block is a fibre; __syncthreads() gives way to the next, and the block goes on when all of them have arrived.
// The order in which they run is the caller's, since a kernel must not depend on it.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include <cuda_bf16.h>  // g++ compiles both as they are
#include <cuda_fp16.h>

#ifndef __global__
#define __global__
#define __device__
#endif
#undef __shared__
#define __shared__ static  // one block at a time

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline Index threadIdx, blockIdx;

namespace cuda_on_cpu {

enum class Order { forward, reverse, random };

class Block {
 public:
  Block(unsigned width, unsigned height) : width_(width), fibres_(width * height) {
    for (Fibre& fibre : fibres_) fibre.stack = std::make_unique<char[]>(stack_size);
  }

  // Runs `body` once for every thread of the block.
  void run(const std::function<void()>& body, Order order, std::mt19937& random) {
    body_ = &body;
    for (Fibre& fibre : fibres_) {
      fibre.done = false;
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.get();
      fibre.context.uc_stack.ss_size = stack_size;
      fibre.context.uc_link = &scheduler_;
      makecontext(&fibre.context, reinterpret_cast<void (*)()>(&Block::enter), 0);
    }
    std::vector<size_t> turn(fibres_.size());
    for (size_t left = fibres_.size(); left > 0;) {
      for (size_t i = 0; i < turn.size(); ++i) turn[i] = order == Order::reverse ? turn.size() - 1 - i : i;
      if (order == Order::random) std::shuffle(turn.begin(), turn.end(), random);
      const size_t before = left;
      for (const size_t i : turn) {
        if (fibres_[i].done) continue;
        threadIdx = {static_cast<unsigned>(i % width_), static_cast<unsigned>(i / width_), 0};
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
    swapcontext(&own->fibres_[own->running_].context, &own->scheduler_);
  }

 private:
  struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done = false;
  };

  static void enter() {
    (*current_->body_)();
    current_->fibres_[current_->running_].done = true;
  }

  static constexpr size_t stack_size = 128 * 1024;
  static inline Block* current_ = nullptr;
  unsigned width_;
  std::vector<Fibre> fibres_;
  ucontext_t scheduler_{};
  const std::function<void()>* body_ = nullptr;
  size_t running_ = 0;
};

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::Block::barrier(); }
