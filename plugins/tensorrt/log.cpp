#include "log.h"

#include <cstdio>
#include <mutex>

#include "host.h"

namespace sparta {
namespace trt {
namespace {

std::mutex lock;
nvinfer1::ILoggerFinder* finder = nullptr;
Host finders_host;
std::string last;

// Logs where somebody listens, and returns whether somebody does.
bool log(const Host& host, void* logger, const std::string& text) noexcept {
  if (logger != nullptr) host.log(logger, text.c_str());
  return logger != nullptr;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* given) {
  const Host host = given ? host_of(given) : Host{};
  const std::lock_guard<std::mutex> held(lock);
  finder = host.layout ? given : nullptr;
  finders_host = host;
}

void report(const std::string& message) noexcept {
  try {
    const std::string text = "Sparta's plugin: " + message;
    nvinfer1::ILoggerFinder* asked = nullptr;
    Host host;
    {
      const std::lock_guard<std::mutex> held(lock);
      last = text;
      asked = finder;
      host = finders_host;
    }
    // Without the lock: a logger may be Python's, and wait for the interpreter, which may wait for the lock.
    if (asked && log(host, host.find_logger(asked), text)) return;
    const Hosts all = hosts();
    for (int i = 0; i < all.count; ++i)
      if (log(all.at[i], all.at[i].logger(), text)) return;
    std::fprintf(stderr, "%s\n", text.c_str());
  } catch (...) {  // nothing is left to say it with
  }
}

const char* last_error() noexcept {
  static thread_local std::string copy;
  try {
    const std::lock_guard<std::mutex> held(lock);
    copy = last;
  } catch (...) {
    copy.clear();
  }
  return copy.c_str();
}

}  // namespace trt
}  // namespace sparta
