// How libsparta_trt.so makes its plugins known: to whoever calls getCreators (a registry's loadLibrary, trtexec's
// --staticPlugins and --dynamicPlugins), and by itself where a server that has TensorRT only opens it (Triton). It
// is never unloaded (-z nodelete): registries and engines point into it.

#include <NvInferRuntime.h>

#include <mutex>
#include <string>

#include "host.h"
#include "log.h"
#include "plugin.h"

#define SPARTA_EXPORT extern "C" __attribute__((visibility("default")))

namespace sparta {
namespace trt {
namespace {

Creator plain{false}, add{true};
nvinfer1::IPluginCreatorInterface* creators[] = {&plain, &add};
constexpr int32_t creator_count = 2;

// Registers with every TensorRT of the process when the library is opened.
class Registration {
 public:
  Registration() noexcept {
    const Hosts all = hosts();
    for (int i = 0; i < all.count; ++i)
      for (nvinfer1::IPluginCreatorInterface* const creator : creators)  // looking for it first would log an error
        made_ = all.at[i].add(*creator) || made_;
  }

  // Takes it back, once.
  void give_up() noexcept {
    const std::lock_guard<std::mutex> held(lock_);
    const Hosts all = made_ ? hosts() : Hosts{};
    made_ = false;
    for (int i = 0; i < all.count; ++i)
      for (nvinfer1::IPluginCreatorInterface* const creator : creators) all.at[i].remove(*creator);
  }

 private:
  std::mutex lock_;
  bool made_ = false;
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
