#include "log.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <mutex>

namespace sparta {
namespace trt {
namespace {

std::mutex lock;
nvinfer1::ILoggerFinder* finder = nullptr;
std::string last;

}  // namespace

int major_of(const void* object) noexcept {
  const void* table = nullptr;  // of virtual functions, which lies in the library that made the object
  std::memcpy(&table, object, sizeof table);
  Dl_info where{};
  if (table == nullptr || dladdr(table, &where) == 0 || where.dli_fname == nullptr) return 0;
  if (std::strstr(where.dli_fname, "libnvinfer") == nullptr) return 0;  // TensorRT for RTX counts otherwise
  void* const library = dlopen(where.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return 0;
  const auto version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
  const int32_t number = version ? version() : 0;  // 101400 is 10.14.0, since 10.0
  dlclose(library);
  return number / 10000;
}

void set_logger_finder(nvinfer1::ILoggerFinder* given) {
  const std::lock_guard<std::mutex> held(lock);
  finder = given != nullptr && major_of(given) == NV_TENSORRT_MAJOR ? given : nullptr;
}

void report(const std::string& message) noexcept {
  try {
    const std::lock_guard<std::mutex> held(lock);
    last = "Sparta's plugin: " + message;
    nvinfer1::ILogger* const logger = finder ? finder->findLogger() : nullptr;
    if (logger) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, last.c_str());
    } else {
      std::fprintf(stderr, "%s\n", last.c_str());
    }
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
