// How libsparta_trt.so makes its plugins known: to whoever calls getCreators (a registry's loadLibrary, trtexec's
// --staticPlugins and --dynamicPlugins), and by itself where a server only opens it (Triton, LD_PRELOAD).

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <mutex>
#include <string>

#include "log.h"
#include "plugin.h"

#define SPARTA_EXPORT extern "C" __attribute__((visibility("default")))

namespace sparta {
namespace trt {
namespace {

Creator plain{false}, add{true};
nvinfer1::IPluginCreatorInterface* creators[] = {&plain, &add};
constexpr int32_t creator_count = 2;

// The registry of the TensorRT that this process has loaded, null where it has none, or one whose classes have
// another layout than the headers this was built with. TensorRT for RTX has no such servers.
nvinfer1::IPluginRegistry* loaded_registry() noexcept {
  const std::string name = "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR);
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  const auto get = reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(dlsym(library, "getPluginRegistry"));
  nvinfer1::IPluginRegistry* const registry = get ? get() : nullptr;
  dlclose(library);  // the process has it open still
  return registry && major_of(registry) == NV_TENSORRT_MAJOR ? registry : nullptr;
}

// Registers when the library is opened, takes that back when it is closed.
class Registration {
 public:
  Registration() noexcept {
    nvinfer1::IPluginRegistry* const registry = loaded_registry();
    if (registry == nullptr) return;
    for (int32_t i = 0; i < creator_count; ++i) {
      const char* const name = i == 0 ? plain.getPluginName() : add.getPluginName();
      if (registry->getCreator(name, version, name_space) != nullptr) continue;  // another copy of the library
      mine_[i] = registry->registerCreator(*creators[i], name_space);
    }
  }
  ~Registration() { give_up(); }

  void give_up() noexcept {
    const std::lock_guard<std::mutex> held(lock_);
    nvinfer1::IPluginRegistry* const registry = mine_[0] || mine_[1] ? loaded_registry() : nullptr;
    for (int32_t i = 0; i < creator_count; ++i) {
      if (registry && mine_[i]) registry->deregisterCreator(*creators[i]);
      mine_[i] = false;
    }
  }

 private:
  std::mutex lock_;
  bool mine_[creator_count] = {};
};

Registration registration;

}  // namespace
}  // namespace trt
}  // namespace sparta

// Whoever asks registers them: what was registered on opening is taken back first, so that it is not done twice.
SPARTA_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  sparta::trt::registration.give_up();
  count = sparta::trt::creator_count;
  return sparta::trt::creators;
}

SPARTA_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { sparta::trt::set_logger_finder(finder); }

// What the library was built with, for `robust-export plugins info`.
SPARTA_EXPORT const char* sparta_trt_info() {
  static const std::string text = "TensorRT " + std::to_string(NV_TENSORRT_MAJOR) + "." +
                                  std::to_string(NV_TENSORRT_MINOR) + " headers, CUDA " +
                                  std::to_string(CUDART_VERSION / 1000) + "." +
                                  std::to_string(CUDART_VERSION % 1000 / 10) + ", GPUs " SPARTA_ARCHITECTURES;
  return text.c_str();
}

// The last error that a plugin of this process reported, an empty text where there was none.
SPARTA_EXPORT const char* sparta_trt_last_error() { return sparta::trt::last_error(); }
