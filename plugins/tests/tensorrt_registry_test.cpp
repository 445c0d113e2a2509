// Tests the registration of the plugins with a TensorRT of the headers' version (tensorrt_stand_in.cpp), for one
// sequence of opening the library (dlopen, as Triton does) and loading it (IPluginRegistry::loadLibrary).
//
//   tensorrt_registry_test libsparta_trt.so libnvinfer.so alone|copies|open|load|open-load|...

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "dynamic_library.h"

namespace {

using namespace nvinfer1;

const char* (*last_error)() = nullptr;

// Make the plugin report an error. Return the name of the logger that received it, "" if none did.
std::string logger_of_error(void* tensorrt, IPluginRegistry* registry) {
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
  if (order == "alone") {  // no TensorRT in the process
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
  if (order == "copies") {  // two copies of the library
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
      CHECK((registry->loadLibrary(path.c_str()) != nullptr) == !loaded);  // TensorRT refuses a second load
      loaded = true;
    }
    CHECK(count() == 2);
    CHECK(registry->getCreator("Sparta", "1", "") && registry->getCreator("SpartaAdd", "1", ""));
  }
  CHECK(*find<const char*()>(tensorrt, "stand_in_logged")() == '\0');  // no error so far
  last_error = find<const char*()>(open(path), "sparta_trt_last_error");
  find<void(void (*)())>(tensorrt, "stand_in_on_log")([] { last_error(); });  // a logger may call back into the plugin
  CHECK(logger_of_error(tensorrt, registry) == (loaded ? "found" : "global"));
  find<void(bool)>(tensorrt, "stand_in_has_logger")(false);
  CHECK(logger_of_error(tensorrt, registry).empty());
}
