#include "host.h"

#include <dlfcn.h>
#include <link.h>

#include <cstring>

#include "plugin.h"
#include "vtable_slots.h"

namespace sparta {
namespace trt {
namespace {

static_assert(NV_TENSORRT_MAJOR >= 10, "the plugin needs the headers of TensorRT 10 or later");

// The file names of TensorRT's runtimes up to the version, such as libnvinfer.so.10.
const char* const library_prefixes[] = {"libnvinfer.so", "libnvinfer_lean.so", "libnvinfer_dispatch.so",
                                        "libtensorrt_rtx.so"};

bool is_tensorrt(const char* path) {
  const char* const slash = std::strrchr(path, '/');
  const char* const name = slash ? slash + 1 : path;
  for (const char* const prefix : library_prefixes)
    if (std::strncmp(name, prefix, std::strlen(prefix)) == 0) return true;
  return false;
}

// Paths are copied into fixed memory: an exception must not pass through dl_iterate_phdr.
struct Paths {
  char path[Hosts::capacity][4096];
  int count = 0;
};

int collect_path(dl_phdr_info* library, size_t, void* data) {
  Paths& found = *static_cast<Paths*>(data);
  if (found.count == Hosts::capacity) return 1;
  if (library->dlpi_name && is_tensorrt(library->dlpi_name) && std::strlen(library->dlpi_name) < sizeof found.path[0])
    std::strcpy(found.path[found.count++], library->dlpi_name);
  return 0;
}

template <class Result, class... Arguments>
Result call_slot(void* object, int slot, Arguments... arguments) {
  void** vtable = nullptr;
  std::memcpy(&vtable, object, sizeof vtable);
  return reinterpret_cast<Result (*)(void*, Arguments...)>(vtable[slot])(object, arguments...);
}

}  // namespace

Host::Host(const char* library_name) noexcept {
  void* const library = dlopen(library_name, RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return;
  const auto get_version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
  const auto get_registry = reinterpret_cast<void* (*)()>(dlsym(library, "getPluginRegistry"));
  get_logger_ = reinterpret_cast<void* (*)()>(dlsym(library, "getLogger"));
  if (get_version && get_registry && get_logger_ && (registry_ = get_registry())) {
    version_ = get_version();
    slots_ = slots_of(version_);
    access_ = major_of(version_) == NV_TENSORRT_MAJOR ? Access::direct : slots_ ? Access::slots : Access::unsupported;
  }
  dlclose(library);  // the library stays open: whoever loaded it holds a reference
}

std::string Host::version() const {
  const bool old = version_ < 10000;  // before TensorRT 10, 8601 is 8.6.1
  const int32_t major = old ? version_ / 1000 : major_of(version_), minor = version_ / 100 % (old ? 10 : 100);
  return (old || major >= 10 ? "TensorRT " : "TensorRT for RTX ") + std::to_string(major) + "." +
         std::to_string(minor) + "." + std::to_string(version_ % 100);
}

bool Host::register_creator(nvinfer1::IPluginCreatorInterface& creator) const noexcept {
  if (access_ == Access::direct)
    return static_cast<nvinfer1::IPluginRegistry*>(registry_)->registerCreator(creator, name_space);
  return call_slot<bool>(registry_, slots_->register_creator, &creator, name_space);
}

bool Host::deregister_creator(nvinfer1::IPluginCreatorInterface& creator) const noexcept {
  if (access_ == Access::direct) return static_cast<nvinfer1::IPluginRegistry*>(registry_)->deregisterCreator(creator);
  return call_slot<bool>(registry_, slots_->deregister_creator, &creator);
}

void* Host::find_logger(void* finder) const {
  if (access_ == Access::direct) return static_cast<nvinfer1::ILoggerFinder*>(finder)->findLogger();
  return call_slot<void*>(finder, slots_->find_logger);
}

void Host::log_error(void* logger, const char* message) const noexcept {
  constexpr auto severity = nvinfer1::ILogger::Severity::kERROR;
  if (access_ == Access::direct) return static_cast<nvinfer1::ILogger*>(logger)->log(severity, message);
  call_slot<void>(logger, slots_->log, severity, message);
}

Hosts find_hosts() noexcept {
  Paths paths;
  dl_iterate_phdr(collect_path, &paths);
  Hosts result;
  for (int i = 0; i < paths.count; ++i) {
    const Host host(paths.path[i]);
    bool skip = host.access() == Access::none;
    for (const Host& other : result) skip = skip || other.registry() == host.registry();
    if (!skip) result.all[result.count++] = host;
  }
  return result;
}

Host host_of(const void* object) noexcept {
  const void* vtable = nullptr;  // lies in the library that defines the class
  std::memcpy(&vtable, object, sizeof vtable);
  Dl_info info{};
  return vtable && dladdr(vtable, &info) && info.dli_fname ? Host(info.dli_fname) : Host();
}

}  // namespace trt
}  // namespace sparta
