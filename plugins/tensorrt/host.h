// Access to the TensorRT libraries that this process has loaded ("hosts"). A plugin calls three classes of its host:
// IPluginRegistry, ILoggerFinder and ILogger. Their vtables differ between TensorRT 10, TensorRT 11 and TensorRT for
// RTX. If the host has the major version of the headers, the classes are called as declared there; for the other
// supported versions by their vtable slots; any other version is refused. The classes that a plugin derives from have
// the same vtables in all supported versions.

#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace sparta {
namespace trt {

struct VtableSlots;

enum class Access {
  none,         // not a TensorRT library
  direct,       // by the classes of the headers
  slots,        // by vtable slots
  unsupported,  // a TensorRT of a version that has not been tested
};

class Host {
 public:
  Host() = default;
  // Inspect a loaded library, by name or path.
  explicit Host(const char* library) noexcept;

  Access access() const { return access_; }
  bool usable() const { return access_ == Access::direct || access_ == Access::slots; }
  const void* registry() const { return registry_; }
  std::string version() const;  // such as "TensorRT 10.14.1"

  // Register or deregister a creator in the global registry. False if it refuses, because of a creator of that name.
  bool register_creator(nvinfer1::IPluginCreatorInterface& creator) const noexcept;
  bool deregister_creator(nvinfer1::IPluginCreatorInterface& creator) const noexcept;

  // Return the logger of the first builder or runtime, null if there is none yet.
  void* global_logger() const { return get_logger_(); }
  void* find_logger(void* finder) const;
  void log_error(void* logger, const char* message) const noexcept;

 private:
  Access access_ = Access::none;
  int32_t version_ = 0;
  const VtableSlots* slots_ = nullptr;
  void* registry_ = nullptr;
  void* (*get_logger_)() = nullptr;
};

struct Hosts {
  static constexpr int capacity = 8;
  Host all[capacity];
  int count = 0;

  const Host* begin() const { return all; }
  const Host* end() const { return all + count; }
};

// Return the TensorRT libraries of this process, without duplicates of one registry.
Hosts find_hosts() noexcept;

// Return the library that defines the class of an object with virtual functions.
Host host_of(const void* object) noexcept;

}  // namespace trt
}  // namespace sparta
