// A stand-in for libnvinfer with only a plugin registry, a logger and a logger finder, which derive from the classes in
// TensorRT's headers. It reports the version of the headers.

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace nvinfer1;

std::string logged;
void (*on_log)() = nullptr;

struct Logger : ILogger {
  explicit Logger(const char* name) : name_(name) {}
  void log(Severity severity, const char* text) noexcept override {
    if (severity == Severity::kERROR) logged = std::string(name_) + ": " + text;
    if (on_log) on_log();
  }
  const char* name_;
} logger("global"), found_logger("found");

bool has_logger = true;  // TensorRT has no logger before the first builder or runtime is created

struct Finder : ILoggerFinder {
  ILogger* findLogger() override { return has_logger ? &found_logger : nullptr; }
} finder;

class Registry : public IPluginRegistry {
 public:
  void setErrorRecorder(IErrorRecorder*) noexcept override {}
  IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
  bool isParentSearchEnabled() const override { return true; }
  void setParentSearchEnabled(bool) override {}
  IPluginResource* acquirePluginResource(const char*, IPluginResource*) noexcept override { return nullptr; }
  int32_t releasePluginResource(const char*) noexcept override { return 1; }

  PluginLibraryHandle loadLibrary(const char* path) noexcept override {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return nullptr;
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
    int32_t count = 0;
    const auto get = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
    IPluginCreatorInterface* const* const creators = get(count);
    bool refused = count == 0;
    for (int32_t i = 0; i < count; ++i)
      refused = refused || find(static_cast<IPluginCreatorV3One*>(creators[i])->getPluginName());
    for (int32_t i = 0; !refused && i < count; ++i) registerCreator(*creators[i], "");
    if (!refused) return library;
    dlclose(library);
    return nullptr;
  }
  void deregisterLibrary(PluginLibraryHandle) noexcept override {}

  bool registerCreator(IPluginCreatorInterface& creator, const char* name_space) noexcept override {
    if (*name_space != '\0' || find(static_cast<IPluginCreatorV3One&>(creator).getPluginName())) return false;
    creators_.push_back(&creator);
    return true;
  }
  IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override {
    *count = static_cast<int32_t>(creators_.size());
    return creators_.data();
  }
  IPluginCreatorInterface* getCreator(const char* name, const char* version, const char* name_space) noexcept override {
    if (std::strcmp(version, "1") == 0 && *name_space == '\0' && find(name)) return find(name);
    logger.log(ILogger::Severity::kERROR, "Cannot find plugin");  // as TensorRT does
    return nullptr;
  }
  bool deregisterCreator(const IPluginCreatorInterface& creator) noexcept override {
    for (size_t i = 0; i < creators_.size(); ++i)
      if (creators_[i] == &creator) {
        creators_.erase(creators_.begin() + static_cast<std::ptrdiff_t>(i));
        return true;
      }
    return false;
  }
#if NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR >= 1014
  IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* count) noexcept override {
    return getAllCreators(count);
  }
#endif
#if NV_TENSORRT_MAJOR == 10  // for IPluginV2, never called by the plugin
  bool registerCreator(IPluginCreator&, const char*) noexcept override { std::abort(); }
  IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept override { std::abort(); }
  IPluginCreator* getPluginCreator(const char*, const char*, const char*) noexcept override { std::abort(); }
  bool deregisterCreator(const IPluginCreator&) noexcept override { std::abort(); }
#endif

 private:
  IPluginCreatorInterface* find(const char* name) const {
    for (IPluginCreatorInterface* const creator : creators_)
      if (std::strcmp(static_cast<IPluginCreatorV3One*>(creator)->getPluginName(), name) == 0) return creator;
    return nullptr;
  }

  std::vector<IPluginCreatorInterface*> creators_;
} registry;

}  // namespace

EXPORT IPluginRegistry* getPluginRegistry() noexcept { return &registry; }
EXPORT ILogger* getLogger() noexcept { return has_logger ? &logger : nullptr; }
EXPORT int32_t getInferLibVersion() noexcept { return NV_TENSORRT_VERSION; }

// Functions for the test.
EXPORT IPluginRegistry* stand_in_registry() { return &registry; }
EXPORT const char* stand_in_logged() { return logged.c_str(); }
EXPORT void stand_in_has_logger(bool has) { has_logger = has; }
EXPORT void stand_in_on_log(void (*call)()) { on_log = call; }
