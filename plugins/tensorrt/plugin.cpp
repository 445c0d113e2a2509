#include "plugin.h"

#include <cstring>
#include <new>

#include "log.h"
#include "sparta_cuda.h"

namespace sparta {
namespace trt {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::TensorFormat;

namespace {

constexpr int32_t failed = -1;

std::string text(const Dims& dims) {
  std::string result = "[";
  for (int32_t i = 0; i < dims.nbDims; ++i) result += (i == 0 ? "" : ", ") + std::to_string(dims.d[i]);
  return result + "]";
}

bool known(DataType type) { return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16; }

Type type_of(DataType type) {
  return type == DataType::kFLOAT ? Type::float32 : type == DataType::kHALF ? Type::float16 : Type::bfloat16;
}

// Whether planes of this type and format have a kernel, for some k.
bool may_be(DataType type, TensorFormat format) {
  if (!known(type)) return false;
  return format == TensorFormat::kLINEAR ||
         (format == TensorFormat::kHWC8 && cuda::supports(type_of(type), cuda::Layout::channels8, 1));
}

// Says what is wrong, in full where there is memory for it; returns the status of a failure.
template <class Message>
int32_t refuse(const Message& message) noexcept {
  try {
    report(message());
  } catch (...) {
    report("out of memory");
  }
  return failed;
}

}  // namespace

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    default: return nullptr;
  }
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  Plugin* const copy = new (std::nothrow) Plugin(add_, channels_);
  if (copy == nullptr) report("out of memory");
  return copy;
}

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* given,
                                   int32_t input_count) const noexcept {
  return [&]() -> int32_t {
    if (input_count != inputs() || output_count != 1)
      return refuse([&] { return wrong_count(input_count, output_count); });
    for (int32_t i = 0; i < input_count; ++i)
      if (!known(given[i]) || given[i] != given[0])
        return refuse([&] {
          return "input " + std::to_string(i) + " is of TensorRT's type " +
                 std::to_string(static_cast<int32_t>(given[i])) + ", x of " +
                 std::to_string(static_cast<int32_t>(given[0])) +
                 "; expected all inputs of one type: float32 (0), float16 (1) or bfloat16 (7)";
        });
    outputs[0] = given[0];
    return 0;
  }();
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* given, int32_t input_count, const nvinfer1::DimsExprs*,
                                int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
                                nvinfer1::IExprBuilder&) noexcept {
  if (input_count != inputs() || output_count != 1)
    return refuse([&] { return wrong_count(input_count, output_count); });
  if (given[0].nbDims != 4)
    return refuse([&] { return "x has " + std::to_string(given[0].nbDims) + " dimensions; expected [N, C, H, W]"; });
  outputs[0] = given[0];
  return 0;
}

bool Plugin::supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                       int32_t input_count, int32_t output_count) noexcept {
  if (input_count != inputs() || output_count != 1 || position < 0 || position > input_count) return false;
  const nvinfer1::PluginTensorDesc& x = tensors[0].desc;
  const nvinfer1::PluginTensorDesc& own = tensors[position].desc;
  const bool parameter = position == input_count - 2 || position == input_count - 1;
  if (!known(own.type) || own.type != x.type) return false;
  if (!parameter) return own.format == x.format && (position > 0 || may_be(own.type, own.format));
  if (own.format != TensorFormat::kLINEAR) return false;
  if (position == input_count - 1 || x.format == TensorFormat::kLINEAR) return true;
  // What stands after `position` is not to be looked at, so k is known here and not at x.
  return own.dims.nbDims == 4 && cuda::supports(type_of(own.type), cuda::Layout::channels8, own.dims.d[2]);
}

int32_t Plugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* given, int32_t input_count,
                                const nvinfer1::DynamicPluginTensorDesc*, int32_t output_count) noexcept {
  try {
    std::string problem = wrong_count(input_count, output_count);
    if (problem.empty()) {
      const Dims *dims[4], *least[4], *usual[4], *most[4];
      for (int32_t i = 0; i < input_count; ++i) {
        dims[i] = &given[i].desc.dims;
        least[i] = &given[i].min;
        usual[i] = &given[i].opt;
        most[i] = &given[i].max;
      }
      for (const auto& shapes : {dims, least, usual, most})
        if (problem.empty()) problem = wrong_shapes(shapes);
    }
    if (problem.empty()) return 0;
    report(problem);
  } catch (...) {
    report("out of memory");
  }
  return failed;
}

int32_t Plugin::onShapeChange(const nvinfer1::PluginTensorDesc* given, int32_t input_count,
                              const nvinfer1::PluginTensorDesc*, int32_t output_count) noexcept {
  try {
    std::string problem = wrong_count(input_count, output_count);
    if (problem.empty()) {
      const Dims* dims[4];
      for (int32_t i = 0; i < input_count; ++i) dims[i] = &given[i].dims;
      problem = wrong_shapes(dims);
    }
    if (problem.empty()) return 0;
    report(problem);
  } catch (...) {
    report("out of memory");
  }
  return failed;
}

int32_t Plugin::enqueue(const nvinfer1::PluginTensorDesc* descs, const nvinfer1::PluginTensorDesc*,
                        const void* const* given, void* const* outputs, void*, cudaStream_t stream) noexcept {
  const Dims& x = descs[0].dims;
  const int32_t weight = inputs() - 2;
  if (!may_be(descs[0].type, descs[0].format))
    return refuse([&] {
      return "x is of TensorRT's type " + std::to_string(static_cast<int32_t>(descs[0].type)) + " and format " +
             std::to_string(static_cast<int32_t>(descs[0].format)) + ", which has no kernel";
    });
  const cuda::Arguments arguments{
      type_of(descs[0].type),
      descs[0].format == TensorFormat::kLINEAR ? cuda::Layout::planes : cuda::Layout::channels8,
      given[0],
      add_ ? given[1] : nullptr,
      given[weight],
      given[weight + 1],
      outputs[0],
      {x.d[0], x.d[1], x.d[2], x.d[3]},
      descs[weight].dims.d[2]};
  const cudaError_t status = cuda::launch(arguments, stream);
  if (status == cudaSuccess) return 0;
  return refuse([&] {
    return "the kernel for x " + text(x) + " was not launched: " + cudaGetErrorString(status);
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  field_ = {"channels", &channels_, nvinfer1::PluginFieldType::kINT32, 1};
  fields_ = {channels_ > 0 ? 1 : 0, &field_};
  return &fields_;
}

std::string Plugin::wrong_count(int32_t input_count, int32_t output_count) const {
  if (input_count == inputs() && output_count == 1) return "";
  return std::string(getPluginName()) + " was given " + std::to_string(input_count) + " inputs and " +
         std::to_string(output_count) + " outputs; expected " +
         (add_ ? "x, residual, weight, bias" : "x, weight, bias") + " and y";
}

// Sizes that are not known yet are -1.
std::string Plugin::wrong_shapes(const Dims* const* dims) const {
  const Dims &x = *dims[0], &weight = *dims[inputs() - 2], &bias = *dims[inputs() - 1];
  if (weight.nbDims != 4 || weight.d[1] != 1 || weight.d[2] != weight.d[3] || !supports(weight.d[2]))
    return "weight is " + text(weight) + "; expected [C, 1, k, k] with k = 1, 3, 5 or 7";
  const auto channels = weight.d[0];
  if (bias.nbDims != 1 || bias.d[0] != channels)
    return "bias is " + text(bias) + ", weight " + text(weight) + "; expected bias [" + std::to_string(channels) + "]";
  if (channels_ > 0 && channels != channels_)
    return "weight is " + text(weight) + ", but the node says channels = " + std::to_string(channels_);
  if (x.nbDims != 4 || (x.d[1] != channels && x.d[1] != -1))
    return "x is " + text(x) + ", weight " + text(weight) + "; expected x [N, " + std::to_string(channels) + ", H, W]";
  if (!add_) return "";
  const Dims& residual = *dims[1];
  bool same = residual.nbDims == 4;
  for (int i = 0; same && i < 4; ++i) same = residual.d[i] == x.d[i] || residual.d[i] == -1 || x.d[i] == -1;
  return same ? "" : "residual is " + text(residual) + ", x " + text(x) + "; expected one shape";
}

nvinfer1::IPluginV3* Creator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase) noexcept {
  try {
    int64_t channels = 0;
    for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
      const nvinfer1::PluginField& field = fields->fields[i];
      if (field.name == nullptr || std::strcmp(field.name, "channels") != 0) continue;
      const bool wide = field.type == nvinfer1::PluginFieldType::kINT64;
      if ((!wide && field.type != nvinfer1::PluginFieldType::kINT32) || field.length != 1 || field.data == nullptr) {
        report(std::string(name ? name : "Sparta") + ": the field channels is of TensorRT's field type " +
               std::to_string(static_cast<int32_t>(field.type)) + ", length " + std::to_string(field.length) +
               "; expected one int32 or int64");
        return nullptr;
      }
      int32_t narrow = 0;
      std::memcpy(wide ? static_cast<void*>(&channels) : &narrow, field.data, wide ? 8 : 4);
      if (!wide) channels = narrow;
      if (channels < 1 || channels > INT32_MAX) {
        report(std::string(name ? name : "Sparta") + ": channels is " + std::to_string(channels) +
               "; expected 1 or more");
        return nullptr;
      }
    }
    return new Plugin(add_, static_cast<int32_t>(channels));
  } catch (...) {
    report("out of memory");
    return nullptr;
  }
}

}  // namespace trt
}  // namespace sparta
