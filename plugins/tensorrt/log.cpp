#include "log.h"

#include <cstdio>
#include <mutex>

namespace sparta {
namespace trt {
namespace {

struct State {
  std::mutex lock;
  nvinfer1::ILoggerFinder* finder = nullptr;
  Host finder_host;
  std::string last_error;
};

// A function-local static, because errors are reported during the initialisation of other static objects.
State& state() {
  static State* const created = new State;
  return *created;
}

// Log to a logger, which may be null. Return whether it is not.
bool log_error(const Host& host, void* logger, const std::string& text) noexcept {
  if (logger != nullptr) host.log_error(logger, text.c_str());
  return logger != nullptr;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder, const Host& host) {
  State& current = state();
  const std::lock_guard<std::mutex> guard(current.lock);
  current.finder = host.usable() ? finder : nullptr;
  current.finder_host = host;
}

void report(const std::string& message) noexcept {
  try {
    const std::string text = "Sparta's plugin: " + message;
    State& current = state();
    nvinfer1::ILoggerFinder* finder = nullptr;
    Host finder_host;
    {
      const std::lock_guard<std::mutex> guard(current.lock);
      current.last_error = text;
      finder = current.finder;
      finder_host = current.finder_host;
    }
    // The lock is released: a Python logger waits for the interpreter, which may wait for a thread that holds the lock.
    if (finder && log_error(finder_host, finder_host.find_logger(finder), text)) return;
    for (const Host& host : find_hosts())
      if (host.usable() && log_error(host, host.global_logger(), text)) return;
    std::fprintf(stderr, "%s\n", text.c_str());
  } catch (...) {  // out of memory, so nothing can be reported
  }
}

const char* last_error() noexcept {
  static thread_local std::string copy;
  try {
    State& current = state();
    const std::lock_guard<std::mutex> guard(current.lock);
    copy = current.last_error;
  } catch (...) {
    copy.clear();
  }
  return copy.c_str();
}

}  // namespace trt
}  // namespace sparta
