// Tests the access to a TensorRT of each version: by its classes if the headers have the same major version, by vtable
// slots for the other supported versions, and a refusal with a message for any other. One case per process.
//
//   tensorrt_versions_test libsparta_trt.so libnvinfer.so libslots.so FOLDER same-major|10|11|rtx-1.7|rtx-1.6|12|8
//
// libnvinfer.so is tensorrt_stand_in.cpp, libslots.so is tensorrt_slots_stand_in.cpp. FOLDER receives a copy of the latter
// under the file name of the version.

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#include "../tensorrt/host.h"
#include "dynamic_library.h"

namespace {

using namespace nvinfer1;
using sparta::trt::Access;

std::string read(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

// Open the plugin library. Return what it wrote to standard error.
std::string open_plugin(const std::string& path, const std::string& folder, void** library) {
  const std::string file = folder + "/stderr.txt";
  CHECK(std::freopen(file.c_str(), "w", stderr) != nullptr);
  *library = open(path);
  std::fflush(stderr);
  return read(file);
}

int32_t count_creators(void* plugin) {
  int32_t count = -1;
  find<IPluginCreatorInterface* const*(int32_t&)>(plugin, "getCreators")(count);
  return count;
}

struct Version {
  const char* name;
  const char* file;
  const char* version;  // as getInferLibVersion returns it
  const char* layout;
  bool supported;
  const char* text;
};

constexpr Version versions[] = {
    {"10", "libnvinfer.so.10", "101200", "10", true, "TensorRT 10.12.0"},
    {"11", "libnvinfer_lean.so.11", "110100", "11", true, "TensorRT 11.1.0"},
    {"rtx-1.7", "libtensorrt_rtx.so.1", "10701", "11", true, "TensorRT for RTX 1.7.1"},
    {"rtx-1.6", "libtensorrt_rtx.so.1", "10601", "11", false, "TensorRT for RTX 1.6.1"},
    {"12", "libnvinfer.so.12", "120000", "11", false, "TensorRT 12.0.0"},
    {"8", "libnvinfer.so.8", "8601", "10", false, "TensorRT 8.6.1"},
};

void test_same_major(const std::string& plugin_path, const std::string& tensorrt_path, const std::string& folder) {
  void* const tensorrt = open(tensorrt_path);
  const sparta::trt::Hosts hosts = sparta::trt::find_hosts();
  CHECK(hosts.count == 1 && hosts.all[0].access() == Access::direct);
  CHECK(hosts.all[0].registry() == find<IPluginRegistry*()>(tensorrt, "stand_in_registry")());
  void* plugin = nullptr;
  CHECK(open_plugin(plugin_path, folder, &plugin).empty());
  CHECK(find<IPluginRegistry*()>(tensorrt, "stand_in_registry")()->getCreator("Sparta", "1", "") != nullptr);
  CHECK(count_creators(plugin) == 2);
}

void test_version(const Version& version, const std::string& plugin_path, const std::string& stand_in_path,
                  const std::string& folder) {
  const std::string copy = folder + "/" + version.file;
  std::ofstream(copy, std::ios::binary) << read(stand_in_path);
  setenv("STAND_IN_VERSION", version.version, 1);
  setenv("STAND_IN_LAYOUT", version.layout, 1);
  void* const tensorrt = open(copy);
  const auto registered = find<int()>(tensorrt, "stand_in_registered");
  const auto logged = find<const char*()>(tensorrt, "stand_in_logged");
  const sparta::trt::Hosts hosts = sparta::trt::find_hosts();
  CHECK(hosts.count == 1 && hosts.all[0].version() == version.text);
  CHECK(hosts.all[0].access() == (version.supported ? Access::slots : Access::unsupported));

  void* plugin = nullptr;
  const std::string errors = open_plugin(plugin_path, folder, &plugin);
  const std::string last_error = find<const char*()>(plugin, "sparta_trt_last_error")();
  if (!version.supported) {
    CHECK(errors == last_error + "\n");
    CHECK(errors.find(std::string("not registered with ") + version.text) != std::string::npos);
    CHECK(errors.find("supports TensorRT 10, TensorRT 11 and TensorRT for RTX 1.7") != std::string::npos);
    CHECK(registered() == 0 && count_creators(plugin) == 0 && registered() == 0);
    find<void(void*)>(plugin, "setLoggerFinder")(find<void*()>(tensorrt, "stand_in_finder")());
    CHECK(count_creators(plugin) == 0 && *logged() == '\0');
    return;
  }
  CHECK(errors.empty() && last_error.empty() && registered() == 2);
  // The logger is found by the finder, or is the global one.
  for (void* const finder : {find<void*()>(tensorrt, "stand_in_finder")(), static_cast<void*>(nullptr)}) {
    find<void(void*)>(plugin, "setLoggerFinder")(finder);
    CHECK(count_creators(plugin) == 2 && registered() == 0);  // deregistered, because the caller registers them
    int32_t count = 0;
    const auto creators = find<IPluginCreatorInterface* const*(int32_t&)>(plugin, "getCreators")(count);
    const int32_t channels = finder ? -1 : -2;
    const PluginField field{"channels", &channels, PluginFieldType::kINT32, 1};
    const PluginFieldCollection fields{1, &field};
    CHECK(static_cast<IPluginCreatorV3One*>(creators[0])->createPlugin("node", &fields, TensorRTPhase::kBUILD) == nullptr);
    const std::string message = finder ? "1 Sparta's plugin: node: channels is -1" : "1 Sparta's plugin: node: channels is -2";
    CHECK(std::strncmp(logged(), message.c_str(), message.size()) == 0);  // severity 1 is kERROR
  }
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc == 6);
  const std::string name = argv[5];
  if (name == "same-major") {
    test_same_major(argv[1], argv[2], argv[4]);
    return 0;
  }
  for (const Version& version : versions) {
    if (name != version.name) continue;
    test_version(version, argv[1], argv[3], argv[4]);
    return 0;
  }
  std::printf("FAILED there is no case %s\n", argv[5]);
  return 1;
}
