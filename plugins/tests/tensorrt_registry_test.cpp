// How libsparta_trt.so makes its plugins known, in one order of opening (dlopen, as Triton does) and loading
// (IPluginRegistry::loadLibrary) a process.
//
//   tensorrt_registry_test libsparta_trt.so libnvinfer.so alone|open|load|open-load|...

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

namespace {

using namespace nvinfer1;

#define CHECK(condition)                                                \
  do {                                                                  \
    if (!(condition)) {                                                 \
      std::printf("FAILED %s:%d %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                     \
    }                                                                   \
  } while (false)

template <class Function>
Function* find(void* library, const char* name) {
  void* const found = dlsym(library, name);
  CHECK(found != nullptr);
  return reinterpret_cast<Function*>(found);
}

void* open(const std::string& path) {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) std::printf("%s\n", dlerror());
  CHECK(library != nullptr);
  return library;
}

const char* (*last_error)() = nullptr;

// Asks for something that is refused; returns what TensorRT's loggers were told, and by which.
std::string logs(void* tensorrt, IPluginRegistry* registry) {
  const float real = 4;
  const PluginField field{"channels", &real, PluginFieldType::kFLOAT32, 1};
  const PluginFieldCollection fields{1, &field};
  const auto creator = static_cast<IPluginCreatorV3One*>(registry->getCreator("Sparta", "1", ""));
  const std::string node = "node " + std::to_string(std::rand());
  CHECK(creator->createPlugin(node.c_str(), &fields, TensorRTPhase::kBUILD) == nullptr);
  CHECK(std::strstr(last_error(), node.c_str()) != nullptr);
  const std::string logged = find<const char*()>(tensorrt, "stand_in_logged")();
  return logged.find(node) == std::string::npos ? "" : logged.substr(0, logged.find(':'));
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc == 4);
  const std::string path = argv[1], order = argv[3];
  if (order == "alone") {  // without any TensorRT
    void* const library = open(path);
    CHECK(*find<const char*()>(library, "sparta_trt_last_error")() == '\0');
    CHECK(dlclose(library) == 0);
    return 0;
  }
  void* const tensorrt = open(argv[2]);
  IPluginRegistry* const registry = find<IPluginRegistry*()>(tensorrt, "stand_in_registry")();
  const auto count = [&] {
    int32_t result = 0;
    registry->getAllCreators(&result);
    return result;
  };
  if (order == "copies") {  // two files of one content
    const std::string copy = path + "." + std::to_string(std::rand()) + ".so";
    std::ofstream(copy, std::ios::binary) << std::ifstream(path, std::ios::binary).rdbuf();
    open(path);
    IPluginCreatorInterface* const first = registry->getCreator("Sparta", "1", "");
    open(copy);
    std::remove(copy.c_str());
    CHECK(registry->getCreator("Sparta", "1", "") == first && count() == 2);
    return 0;
  }
  bool loaded = false;
  void* opened = nullptr;
  for (size_t at = 0; at < order.size(); at = order.find_first_not_of('-', at)) {
    const std::string step = order.substr(at, order.find('-', at) - at);
    at += step.size();
    if (step == "open") opened = open(path);
    if (step == "close") CHECK(dlclose(opened) == 0);
    if (step == "load") {
      CHECK((registry->loadLibrary(path.c_str()) != nullptr) == !loaded);  // TensorRT refuses the second time
      loaded = true;
    }
    CHECK(count() == 2);
    CHECK(registry->getCreator("Sparta", "1", "") && registry->getCreator("SpartaAdd", "1", ""));
  }
  CHECK(*find<const char*()>(tensorrt, "stand_in_logged")() == '\0');  // so far all went well
  last_error = find<const char*()>(open(path), "sparta_trt_last_error");
  find<void(void (*)())>(tensorrt, "stand_in_on_log")([] { last_error(); });  // a logger may ask back
  CHECK(logs(tensorrt, registry) == (loaded ? "found" : "global"));
  find<void(bool)>(tensorrt, "stand_in_has_logger")(false);
  CHECK(logs(tensorrt, registry).empty());
}
