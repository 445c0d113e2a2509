// Calls the plugins of libsparta_trt.so as TensorRT does, without TensorRT and without a GPU.
//
//   tensorrt_test libsparta_trt.so

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "dynamic_library.h"

namespace {

using namespace nvinfer1;

const char* (*last_error)() = nullptr;

bool last_error_has(const char* part) { return std::strstr(last_error(), part) != nullptr; }

Dims dims(std::initializer_list<int> sizes) {
  Dims result{};
  for (const int size : sizes) result.d[result.nbDims++] = size;
  return result;
}

std::unique_ptr<IPluginV3> create(IPluginCreatorV3One* creator, std::vector<PluginField> fields) {
  const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return std::unique_ptr<IPluginV3>(creator->createPlugin("node", &collection, TensorRTPhase::kBUILD));
}

template <class Capability>
Capability* as(IPluginV3& plugin, PluginCapabilityType type) {
  IPluginCapability* const capability = plugin.getCapabilityInterface(type);
  CHECK(capability != nullptr);
  return static_cast<Capability*>(capability);
}
IPluginV3OneCore* core(IPluginV3& plugin) { return as<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE); }
IPluginV3OneBuild* build(IPluginV3& plugin) { return as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD); }
IPluginV3OneRuntime* runtime(IPluginV3& plugin) {
  return as<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

// Return the tensors of a call: x, [residual,] weight, bias, y.
std::vector<DynamicPluginTensorDesc> tensors(bool add, int channels, int k, DataType type = DataType::kFLOAT,
                                             TensorFormat format = TensorFormat::kLINEAR) {
  const auto describe = [&](Dims shape, TensorFormat tensor_format) {
    DynamicPluginTensorDesc tensor{};
    tensor.desc.dims = tensor.min = tensor.max = tensor.opt = shape;
    tensor.desc.type = type;
    tensor.desc.format = tensor_format;
    return tensor;
  };
  std::vector<DynamicPluginTensorDesc> result;
  const DynamicPluginTensorDesc x = describe(dims({-1, channels, 6, 5}), format);
  result.push_back(x);
  if (add) result.push_back(x);
  result.push_back(describe(dims({channels, 1, k, k}), TensorFormat::kLINEAR));
  result.push_back(describe(dims({channels}), TensorFormat::kLINEAR));
  result.push_back(x);
  return result;
}

int32_t configure(IPluginV3& plugin, const std::vector<DynamicPluginTensorDesc>& all) {
  const int32_t inputs = static_cast<int32_t>(all.size()) - 1;
  const int32_t status = build(plugin)->configurePlugin(all.data(), inputs, &all.back(), 1);
  std::vector<PluginTensorDesc> descs;
  for (const auto& tensor : all) descs.push_back(tensor.desc);
  CHECK((runtime(plugin)->onShapeChange(descs.data(), inputs, &descs.back(), 1) == 0) == (status == 0));
  return status;
}

void test_fields(IPluginCreatorV3One* creator, bool add) {
  CHECK(std::string(creator->getPluginName()) == (add ? "SpartaAdd" : "Sparta"));
  CHECK(std::string(creator->getPluginVersion()) == "1" && std::string(creator->getPluginNamespace()).empty());
  const PluginFieldCollection* const names = creator->getFieldNames();
  CHECK(names->nbFields == 1 && std::string(names->fields[0].name) == "channels");

  const int32_t channels32 = 4, negative = -4;
  const int64_t channels64 = 4, huge = int64_t{1} << 40;
  const float real = 4;
  CHECK(create(creator, {}));
  CHECK(create(creator, {{"channels", &channels32, PluginFieldType::kINT32, 1}}));
  CHECK(create(creator, {{"channels", &channels64, PluginFieldType::kINT64, 1}}));
  CHECK(create(creator, {{"another", &real, PluginFieldType::kFLOAT32, 1}}));
  CHECK(!create(creator, {{"channels", &real, PluginFieldType::kFLOAT32, 1}}));
  CHECK(last_error_has("expected one int32 or int64"));
  CHECK(!create(creator, {{"channels", &channels32, PluginFieldType::kINT32, 2}}));
  CHECK(last_error_has("length 2"));
  CHECK(!create(creator, {{"channels", nullptr, PluginFieldType::kINT32, 1}}));
  CHECK(!create(creator, {{"channels", &negative, PluginFieldType::kINT32, 1}}));
  CHECK(last_error_has("channels is -4"));
  CHECK(!create(creator, {{"channels", &huge, PluginFieldType::kINT64, 1}}));
  CHECK(last_error_has("channels is 1099511627776"));
}

// Every type and format at every position. The rule: all tensors have the same supported type; weight and bias are
// linear; x, residual and y are all linear, or all HWC8 of a 16-bit type with k = 1 or 3.
void test_formats(IPluginV3& plugin, bool add) {
  const DataType types[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT8, DataType::kINT32,
                            DataType::kINT64, DataType::kBOOL, DataType::kUINT8, DataType::kFP8};
  const TensorFormat layouts[] = {TensorFormat::kLINEAR, TensorFormat::kCHW2, TensorFormat::kHWC8, TensorFormat::kCHW4,
                                  TensorFormat::kCHW16, TensorFormat::kCHW32, TensorFormat::kHWC, TensorFormat::kHWC16};
  const int32_t inputs = add ? 4 : 3;
  int accepted = 0;
  for (const int k : {1, 3, 5, 7})
    for (const DataType type : types)
      for (const TensorFormat format : layouts) {
        const bool is_16_bit = type == DataType::kHALF || type == DataType::kBF16;
        const bool good_type = is_16_bit || type == DataType::kFLOAT;
        const bool plausible = good_type && (format == TensorFormat::kLINEAR ||
                                             (format == TensorFormat::kHWC8 && is_16_bit));
        const bool good = plausible && (format == TensorFormat::kLINEAR || k <= 3);
        const std::vector<DynamicPluginTensorDesc> all = tensors(add, 4, k, type, format);
        // Tensors after `position` are overwritten: TensorRT has not set them yet.
        const auto supports = [&](int32_t position, std::vector<DynamicPluginTensorDesc> given) {
          for (size_t i = static_cast<size_t>(position) + 1; i < given.size(); ++i) {
            std::memset(&given[i], 0x7f, sizeof given[i]);
            given[i].desc.dims.nbDims = -1;
          }
          return build(plugin)->supportsFormatCombination(position, given.data(), inputs, 1);
        };
        CHECK(supports(0, all) == plausible);
        if (!plausible) continue;
        CHECK(supports(inputs - 2, all) == good);  // k is known from the weight
        if (!good) continue;
        ++accepted;
        for (int32_t position = 1; position <= inputs; ++position) {
          CHECK(supports(position, all));
          const bool parameter = position == inputs - 2 || position == inputs - 1;
          for (const DataType other : types) {
            std::vector<DynamicPluginTensorDesc> changed = all;
            changed[position].desc.type = other;
            CHECK(supports(position, changed) == (other == type));
          }
          for (const TensorFormat other : layouts) {
            std::vector<DynamicPluginTensorDesc> changed = all;
            changed[position].desc.format = other;
            CHECK(supports(position, changed) == (parameter ? other == TensorFormat::kLINEAR : other == format));
          }
        }
      }
  CHECK(accepted == 4 * 3 + 2 * 2);
  const auto all = tensors(add, 4, 3);
  CHECK(!build(plugin)->supportsFormatCombination(0, all.data(), inputs - 1, 1));
  CHECK(!build(plugin)->supportsFormatCombination(inputs + 1, all.data(), inputs, 1));
}

void test_output_types_and_shapes(IPluginV3& plugin, bool add) {
  const int32_t inputs = add ? 4 : 3;
  CHECK(build(plugin)->getNbOutputs() == 1);
  for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
    std::vector<DataType> given(inputs, type);
    DataType y = DataType::kINT8;
    CHECK(build(plugin)->getOutputDataTypes(&y, 1, given.data(), inputs) == 0 && y == type);
    given.back() = type == DataType::kHALF ? DataType::kFLOAT : DataType::kHALF;
    CHECK(build(plugin)->getOutputDataTypes(&y, 1, given.data(), inputs) != 0 && last_error_has("expected all inputs of one type"));
  }
  char memory[64] = {};  // addresses only: the plugin copies size expressions without reading them
  IExprBuilder& builder = *reinterpret_cast<IExprBuilder*>(memory);
  std::vector<DimsExprs> given(inputs);
  given[0].nbDims = 4;
  for (int i = 0; i < 4; ++i) given[0].d[i] = reinterpret_cast<const IDimensionExpr*>(memory + 8 * i);
  DimsExprs y{};
  CHECK(build(plugin)->getOutputShapes(given.data(), inputs, nullptr, 0, &y, 1, builder) == 0);
  CHECK(y.nbDims == 4);
  for (int i = 0; i < 4; ++i) CHECK(y.d[i] == given[0].d[i]);
  given[0].nbDims = 3;
  CHECK(build(plugin)->getOutputShapes(given.data(), inputs, nullptr, 0, &y, 1, builder) != 0);
  CHECK(last_error_has("x has 3 dimensions"));
  CHECK(build(plugin)->getOutputShapes(given.data(), inputs - 1, nullptr, 0, &y, 1, builder) != 0);
}

void test_shapes(IPluginV3& plugin, bool add) {
  const size_t weight = add ? 2 : 1;
  for (const int k : {1, 3, 5, 7}) CHECK(configure(plugin, tensors(add, 4, k)) == 0);
  const auto expect_error = [&](size_t position, Dims shape, const char* message) {
    std::vector<DynamicPluginTensorDesc> all = tensors(add, 4, 3);
    all[position].desc.dims = shape;
    CHECK(configure(plugin, all) != 0);
    CHECK(last_error_has(message));
  };
  for (Dims DynamicPluginTensorDesc::*const bound : {&DynamicPluginTensorDesc::min, &DynamicPluginTensorDesc::opt,
                                                   &DynamicPluginTensorDesc::max}) {
    std::vector<DynamicPluginTensorDesc> all = tensors(add, 4, 3);
    all[0].desc.dims = dims({-1, -1, -1, -1});
    CHECK(build(plugin)->configurePlugin(all.data(), static_cast<int32_t>(all.size()) - 1, &all.back(), 1) == 0);
    all[0].*bound = dims({2, 5, 6, 5});
    CHECK(build(plugin)->configurePlugin(all.data(), static_cast<int32_t>(all.size()) - 1, &all.back(), 1) != 0);
    CHECK(last_error_has("x is [2, 5, 6, 5]"));
  }
  expect_error(weight, dims({4, 1, 4, 4}), "weight is [4, 1, 4, 4]; expected [C, 1, k, k]");
  expect_error(weight, dims({4, 1, 9, 9}), "k = 1, 3, 5 or 7");
  expect_error(weight, dims({4, 1, 3, 5}), "weight is [4, 1, 3, 5]");
  expect_error(weight, dims({4, 2, 3, 3}), "weight is [4, 2, 3, 3]");
  expect_error(weight, dims({4, 3, 3}), "weight is [4, 3, 3]");
  expect_error(weight + 1, dims({5}), "expected bias [4]");
  expect_error(weight + 1, dims({4, 1}), "bias is [4, 1]");
  expect_error(0, dims({2, 5, 6, 5}), "expected x [N, 4, H, W]");
  expect_error(0, dims({2, 4, 6}), "x is [2, 4, 6]");
  if (add) expect_error(1, dims({-1, 4, 6, 1}), "residual is [-1, 4, 6, 1]");
  CHECK(configure(plugin, tensors(add, 5, 3)) != 0);  // the attribute of the node is 4
  CHECK(last_error_has("channels = 4"));
  CHECK(configure(plugin, tensors(!add, 4, 3)) != 0);
  CHECK(last_error_has(add ? "was given 3 inputs" : "was given 4 inputs"));
}

// Serialise, recreate and clone a plugin. Each copy must outlive the plugin it was made from.
std::unique_ptr<IPluginV3> recreate(IPluginCreatorV3One* creator, std::unique_ptr<IPluginV3> plugin) {
  const PluginFieldCollection* const serialized = runtime(*plugin)->getFieldsToSerialize();
  CHECK(serialized->nbFields == 1 && serialized->fields[0].length == 1);
  std::unique_ptr<IPluginV3> second(creator->createPlugin("recreated", serialized, TensorRTPhase::kRUNTIME));
  plugin.reset();
  std::unique_ptr<IPluginV3> third(second->clone());
  second.reset();
  std::unique_ptr<IPluginV3> fourth(runtime(*third)->attachToContext(nullptr));
  third.reset();
  CHECK(*static_cast<const int32_t*>(runtime(*fourth)->getFieldsToSerialize()->fields[0].data) == 4);
  return fourth;
}

// Without a GPU every launch fails. It must return a status and report a message.
void test_enqueue(IPluginV3& plugin, bool add) {
  for (const TensorFormat format : {TensorFormat::kLINEAR, TensorFormat::kHWC8}) {
    std::vector<PluginTensorDesc> descs;
    for (const auto& tensor : tensors(add, 4, 3, DataType::kHALF, format)) descs.push_back(tensor.desc);
    for (PluginTensorDesc& desc : descs)
      if (desc.dims.nbDims == 4 && desc.dims.d[0] == -1) desc.dims.d[0] = 2;
    alignas(16) static char memory[4096];
    const void* inputs[] = {memory, memory, memory, memory};
    void* outputs[] = {memory};
    CHECK(runtime(plugin)->enqueue(descs.data(), &descs.back(), inputs, outputs, nullptr, nullptr) != 0);
    CHECK(last_error_has("the kernel for x [2, 4, 6, 5] was not launched: "));
    descs[0].format = TensorFormat::kCHW32;
    CHECK(runtime(plugin)->enqueue(descs.data(), &descs.back(), inputs, outputs, nullptr, nullptr) != 0);
    CHECK(last_error_has("format 5, which has no kernel"));
    descs[0].format = format;
    descs[0].dims.d[0] = 0;  // an empty tensor launches nothing
    CHECK(runtime(plugin)->enqueue(descs.data(), &descs.back(), inputs, outputs, nullptr, nullptr) == 0);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc == 2);
  setenv("CUDA_VISIBLE_DEVICES", "", 1);  // the pointers are to host memory, so a launch must fail on every machine
  void* const library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::printf("FAILED %s\n", dlerror());
    return 1;
  }
  last_error = reinterpret_cast<const char* (*)()>(dlsym(library, "sparta_trt_last_error"));
  const auto get = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  const auto set_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  const auto info = reinterpret_cast<const char* (*)()>(dlsym(library, "sparta_trt_info"));
  CHECK(last_error && get && set_finder && info);
  CHECK(std::strstr(info(), "TensorRT ") != nullptr && *last_error() == '\0');
  set_finder(nullptr);
  int32_t count = 0;
  IPluginCreatorInterface* const* const creators = get(count);
  CHECK(count == 2 && get(count) == creators);
  for (int32_t i = 0; i < count; ++i) {
    CHECK(std::string(creators[i]->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
    IPluginCreatorV3One* const creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    const bool add = i == 1;
    test_fields(creator, add);
    const int64_t channels = 4;
    std::unique_ptr<IPluginV3> plugin = create(creator, {{"channels", &channels, PluginFieldType::kINT64, 1}});
    CHECK(std::string(core(*plugin)->getPluginName()) == creator->getPluginName());
    CHECK(std::string(core(*plugin)->getPluginVersion()) == "1");
    test_formats(*plugin, add);
    test_output_types_and_shapes(*plugin, add);
    test_shapes(*plugin, add);
    plugin = recreate(creator, std::move(plugin));
    test_shapes(*plugin, add);
    test_enqueue(*plugin, add);
  }
  std::printf("ok\n");
}
