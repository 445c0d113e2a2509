// What the tests of core share: checks that count, a pool of threads, and the choice of instructions.

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

// Three threads that take the tasks in turn.
inline sparta::Pool threads() {
  return {nullptr, [](void*, void (*task)(void*, size_t), size_t count, void* argument) {
            std::atomic<size_t> next{0};
            const auto work = [&] {
              for (size_t i; (i = next++) < count;) task(argument, i);
            };
            std::thread other(work), another(work);
            work();
            other.join();
            another.join();
          }};
}

// What a test returns: 77, which ctest shows as skipped, where SPARTA_ISA asks for instructions that are not here.
template <class Body>
int run_tests(const Body& body) {
  const char* const asked = std::getenv("SPARTA_ISA");
  if (asked != nullptr && std::strcmp(asked, sparta::instructions()) != 0) {
    std::printf("this CPU or compiler has no %s; it would run %s\n", asked, sparta::instructions());
    return 77;
  }
  body();
  std::printf("%s: %s\n", sparta::instructions(), failures == 0 ? "ok" : "FAILED");
  return failures == 0 ? 0 : 1;
}

}  // namespace
