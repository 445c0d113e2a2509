// The entry points of libsparta_trt.so, and the registration of its plugins: by the caller of getCreators (a registry's
// loadLibrary; trtexec's --staticPlugins and --dynamicPlugins), or by the library itself when it is opened in a process
// that has loaded TensorRT, because a server such as Triton only opens it. The library is never unloaded
// (-z nodelete): registries and engines hold pointers into it.

#include <NvInferRuntime.h>

#include <mutex>
#include <string>

#include "host.h"
#include "log.h"
#include "plugin.h"
#include "vtable_slots.h"

#define SPARTA_EXPORT extern "C" __attribute__((visibility("default")))

namespace sparta {
namespace trt {
namespace {

Creator sparta_creator{false}, sparta_add_creator{true};
nvinfer1::IPluginCreatorInterface* creators[] = {&sparta_creator, &sparta_add_creator};
constexpr int32_t creator_count = 2;

std::string headers_version() {
  return "TensorRT " + std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + " headers";
}

void report_unsupported(const Host& host) noexcept {
  try {
    report("not registered with " + host.version() + ", which has not been tested: the plugin supports " +
           supported_versions + " (built with " + headers_version() + ")");
  } catch (...) {
    report("out of memory");
  }
}

// Registers the creators with every TensorRT of the process when the library is opened.
class Registration {
 public:
  Registration() noexcept {
    for (const Host& host : find_hosts()) {
      if (!host.usable()) {
        report_unsupported(host);
        continue;
      }
      // Without asking first whether a creator is registered: TensorRT logs an error if it is not.
      for (nvinfer1::IPluginCreatorInterface* const creator : creators)
        registered_ = host.register_creator(*creator) || registered_;
    }
  }

  // Deregister what the constructor registered. Later calls do nothing.
  void undo() noexcept {
    const std::lock_guard<std::mutex> guard(lock_);
    if (!registered_) return;
    registered_ = false;
    for (const Host& host : find_hosts())
      for (nvinfer1::IPluginCreatorInterface* const creator : creators)
        if (host.usable()) host.deregister_creator(*creator);
  }

 private:
  std::mutex lock_;
  bool registered_ = false;
};

Registration registration;

// Return a host that may be calling getCreators and is not supported, or none. `loader` is the host that called
// setLoggerFinder last, which loadLibrary does just before.
Host unsupported_caller(const Host& loader) noexcept {
  if (loader.access() != Access::none) return loader.usable() ? Host() : loader;
  Host unsupported;
  for (const Host& host : find_hosts()) {
    if (host.usable()) return Host();
    unsupported = host;
  }
  return unsupported;
}

std::mutex loader_lock;
Host loader;

}  // namespace
}  // namespace trt
}  // namespace sparta

// Return the creators to a caller that registers them. What the library registered itself is deregistered first, so
// that they are not registered twice. An unsupported TensorRT gets none.
SPARTA_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using namespace sparta::trt;
  Host caller;
  {
    const std::lock_guard<std::mutex> guard(loader_lock);
    caller = unsupported_caller(loader);
  }
  if (caller.access() == Access::unsupported) {
    report_unsupported(caller);
    count = 0;
    return creators;
  }
  registration.undo();
  count = creator_count;
  return creators;
}

// TensorRT passes its logger finder when it loads a library.
SPARTA_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  using namespace sparta::trt;
  const Host host = finder ? host_of(finder) : Host();
  set_logger_finder(finder, host);
  const std::lock_guard<std::mutex> guard(loader_lock);
  loader = host;
}

// Return what the library was built with, for `robust-export plugins info`.
SPARTA_EXPORT const char* sparta_trt_info() {
  static const std::string text = sparta::trt::headers_version() + ", CUDA " + std::to_string(CUDART_VERSION / 1000) +
                                  "." + std::to_string(CUDART_VERSION % 1000 / 10) + ", GPUs " SPARTA_ARCHITECTURES;
  return text.c_str();
}

// Return the last error that the plugin reported in this process, "" if there was none.
SPARTA_EXPORT const char* sparta_trt_last_error() { return sparta::trt::last_error(); }
