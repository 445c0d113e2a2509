// The TensorRTs that this process has loaded, each called in the layout of its own version: IPluginRegistry,
// ILoggerFinder and ILogger, which a plugin calls, have other tables of virtual functions in TensorRT 11 and in
// TensorRT for RTX than in TensorRT 10. The classes that a plugin derives from have the same in all of them.

#pragma once

#include <NvInferRuntime.h>

namespace sparta {
namespace trt {

struct Layout;

struct Host {
  const Layout* layout = nullptr;  // null where this is no TensorRT, or none whose layout is known
  void* registry = nullptr;        // the global one
  void* (*logger)() = nullptr;     // the logger of whoever built or ran something first; may return null

  bool add(nvinfer1::IPluginCreatorInterface& creator) const noexcept;  // false where one of its name is registered
  bool remove(nvinfer1::IPluginCreatorInterface& creator) const noexcept;
  void* find_logger(void* finder) const;  // null where it finds none
  void log(void* logger, const char* error) const noexcept;
};

struct Hosts {
  Host at[8];
  int count = 0;
};

// Every TensorRT in this process.
Hosts hosts() noexcept;

// The one that an object's class comes from.
Host host_of(const void* object) noexcept;

}  // namespace trt
}  // namespace sparta
