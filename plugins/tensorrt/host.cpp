#include "host.h"

#include <dlfcn.h>

#include <cstring>

#include "plugin.h"

namespace sparta {
namespace trt {

// Where functions stand in their class's table, as the Itanium ABI of C++ lays it out; a destructor has two places.
struct Layout {
  int find_logger, log;                      // of ILoggerFinder and ILogger
  int register_creator, deregister_creator;  // of IPluginRegistry, for IPluginCreatorInterface
};

namespace {

constexpr Layout ten{0, 0, 12, 15};
constexpr Layout eleven{4, 4, 8, 11};  // ILoggerFinder and ILogger are versioned; the registry lost IPluginV2's

const char* const libraries[] = {"libnvinfer.so.10",      "libnvinfer.so.11",          "libnvinfer_lean.so.10",
                                 "libnvinfer_lean.so.11", "libnvinfer_dispatch.so.10", "libnvinfer_dispatch.so.11",
                                 "libtensorrt_rtx.so.1"};

// What getInferLibVersion says: 101400 is TensorRT 10.14.0, 10701 is TensorRT for RTX 1.7.1.
const Layout* layout_of(int32_t version) {
  switch (version / 10000) {
    case 11: return &eleven;
    case 10: return &ten;
    case 1: return version >= 10700 ? &eleven : nullptr;
    default: return nullptr;
  }
}

template <class Result, class... Arguments>
Result call(void* object, int place, Arguments... arguments) {
  void** table = nullptr;
  std::memcpy(&table, object, sizeof table);
  return reinterpret_cast<Result (*)(void*, Arguments...)>(table[place])(object, arguments...);
}

// Of a library that this process has open, by name or path.
Host host_called(const char* name) noexcept {
  Host host;
  void* const library = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return host;
  const auto version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
  const auto registry = reinterpret_cast<void* (*)()>(dlsym(library, "getPluginRegistry"));
  host.logger = reinterpret_cast<void* (*)()>(dlsym(library, "getLogger"));
  if (version && registry && host.logger && (host.registry = registry())) host.layout = layout_of(version());
  dlclose(library);  // somebody else keeps it open
  return host;
}

}  // namespace

Hosts hosts() noexcept {
  Hosts result;
  for (const char* const name : libraries) {
    const Host host = host_called(name);
    bool known = host.layout == nullptr;
    for (int i = 0; i < result.count; ++i) known = known || result.at[i].registry == host.registry;
    if (!known) result.at[result.count++] = host;
  }
  return result;
}

Host host_of(const void* object) noexcept {
  const void* table = nullptr;  // lies in the library that has the class
  std::memcpy(&table, object, sizeof table);
  Dl_info where{};
  return table && dladdr(table, &where) && where.dli_fname ? host_called(where.dli_fname) : Host{};
}

bool Host::add(nvinfer1::IPluginCreatorInterface& creator) const noexcept {
  return call<bool>(registry, layout->register_creator, &creator, name_space);
}

bool Host::remove(nvinfer1::IPluginCreatorInterface& creator) const noexcept {
  return call<bool>(registry, layout->deregister_creator, &creator);
}

void* Host::find_logger(void* finder) const { return call<void*>(finder, layout->find_logger); }

void Host::log(void* logger, const char* error) const noexcept {
  call<void>(logger, layout->log, nvinfer1::ILogger::Severity::kERROR, error);
}

}  // namespace trt
}  // namespace sparta
