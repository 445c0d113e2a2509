// Helpers of the tests of core: CHECK, a thread pool, and skipping instruction sets that this CPU does not have.

#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "sparta.h"

namespace {

int failures = 0;

#define CHECK(condition, ...)                           \
  do {                                                  \
    if (!(condition)) {                                 \
      std::printf("FAILED %s:%d ", __FILE__, __LINE__); \
      std::printf(__VA_ARGS__);                         \
      std::printf("\n");                                \
      if (++failures > 20) std::exit(1);                \
    }                                                   \
  } while (false)

// Return a pool of three threads.
inline sparta::Pool thread_pool() {
  return {nullptr, [](void*, void (*task)(void*, size_t), size_t count, void* argument) {
            std::atomic<size_t> next{0};
            const auto work = [&] {
              for (size_t i; (i = next++) < count;) task(argument, i);
            };
            std::thread second(work), third(work);
            work();
            second.join();
            third.join();
          }};
}

// Run body() and return the exit code. If the instruction set that SPARTA_ISA requests is not available, return 77,
// which ctest shows as skipped.
template <class Body>
int run_tests(const Body& body) {
  const char* const requested = std::getenv("SPARTA_ISA");
  if (requested != nullptr && std::strcmp(requested, sparta::instructions()) != 0) {
    std::printf("this CPU or compiler has no %s; it would run %s\n", requested, sparta::instructions());
    return 77;
  }
  body();
  std::printf("%s: %s\n", sparta::instructions(), failures == 0 ? "ok" : "FAILED");
  return failures == 0 ? 0 : 1;
}

}  // namespace
