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

constexpr int32_t failure = -1;

std::string text(const Dims& dims) {
  std::string result = "[";
  for (int32_t i = 0; i < dims.nbDims; ++i) result += (i == 0 ? "" : ", ") + std::to_string(dims.d[i]);
  return result + "]";
}

bool is_supported(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

Type type_of(DataType type) {
  return type == DataType::kFLOAT ? Type::float32 : type == DataType::kHALF ? Type::float16 : Type::bfloat16;
}

// Whether x of this type and format has a kernel for at least one k.
bool has_any_kernel(DataType type, TensorFormat format) {
  if (!is_supported(type)) return false;
  return format == TensorFormat::kLINEAR ||
         (format == TensorFormat::kHWC8 && cuda::has_kernel(type_of(type), cuda::Layout::nhwc8, 1));
}

// Report message() and return the status of a failure.
template <class Message>
int32_t fail(const Message& message) noexcept {
  try {
    report(message());
  } catch (...) {
    report("out of memory");
  }
  return failure;
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

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                                   int32_t input_count) const noexcept {
  if (input_count != expected_inputs() || output_count != 1)
    return fail([&] { return check_counts(input_count, output_count); });
  for (int32_t i = 0; i < input_count; ++i)
    if (!is_supported(inputs[i]) || inputs[i] != inputs[0])
      return fail([&] {
        return "input " + std::to_string(i) + " is of TensorRT's type " +
               std::to_string(static_cast<int32_t>(inputs[i])) + ", x of " +
               std::to_string(static_cast<int32_t>(inputs[0])) +
               "; expected all inputs of one type: float32 (0), float16 (1) or bfloat16 (7)";
      });
  outputs[0] = inputs[0];
  return 0;
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count, const nvinfer1::DimsExprs*,
                                int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
                                nvinfer1::IExprBuilder&) noexcept {
  if (input_count != expected_inputs() || output_count != 1)
    return fail([&] { return check_counts(input_count, output_count); });
  if (inputs[0].nbDims != 4)
    return fail([&] { return "x has " + std::to_string(inputs[0].nbDims) + " dimensions; expected [N, C, H, W]"; });
  outputs[0] = inputs[0];
  return 0;
}

bool Plugin::supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                       int32_t input_count, int32_t output_count) noexcept {
  if (input_count != expected_inputs() || output_count != 1 || position < 0 || position > input_count) return false;
  const nvinfer1::PluginTensorDesc& x = tensors[0].desc;
  const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
  const bool parameter = position == input_count - 2 || position == input_count - 1;
  if (!is_supported(tensor.type) || tensor.type != x.type) return false;
  if (!parameter) return tensor.format == x.format && (position > 0 || has_any_kernel(tensor.type, tensor.format));
  if (tensor.format != TensorFormat::kLINEAR) return false;
  if (position == input_count - 1 || x.format == TensorFormat::kLINEAR) return true;
  // Tensors after `position` must not be read, so k is checked at the weight and not at x.
  return tensor.dims.nbDims == 4 && cuda::has_kernel(type_of(tensor.type), cuda::Layout::nhwc8, tensor.dims.d[2]);
}

int32_t Plugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const nvinfer1::DynamicPluginTensorDesc*, int32_t output_count) noexcept {
  try {
    std::string problem = check_counts(input_count, output_count);
    if (problem.empty()) {
      const Dims *dims[4], *min[4], *opt[4], *max[4];
      for (int32_t i = 0; i < input_count; ++i) {
        dims[i] = &inputs[i].desc.dims;
        min[i] = &inputs[i].min;
        opt[i] = &inputs[i].opt;
        max[i] = &inputs[i].max;
      }
      for (const auto& shapes : {dims, min, opt, max})
        if (problem.empty()) problem = check_shapes(shapes);
    }
    if (problem.empty()) return 0;
    report(problem);
  } catch (...) {
    report("out of memory");
  }
  return failure;
}

int32_t Plugin::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                              const nvinfer1::PluginTensorDesc*, int32_t output_count) noexcept {
  try {
    std::string problem = check_counts(input_count, output_count);
    if (problem.empty()) {
      const Dims* dims[4];
      for (int32_t i = 0; i < input_count; ++i) dims[i] = &inputs[i].dims;
      problem = check_shapes(dims);
    }
    if (problem.empty()) return 0;
    report(problem);
  } catch (...) {
    report("out of memory");
  }
  return failure;
}

int32_t Plugin::enqueue(const nvinfer1::PluginTensorDesc* descs, const nvinfer1::PluginTensorDesc*,
                        const void* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept {
  const Dims& x = descs[0].dims;
  const int32_t weight = expected_inputs() - 2;
  if (!has_any_kernel(descs[0].type, descs[0].format))
    return fail([&] {
      return "x is of TensorRT's type " + std::to_string(static_cast<int32_t>(descs[0].type)) + " and format " +
             std::to_string(static_cast<int32_t>(descs[0].format)) + ", which has no kernel";
    });
  const cuda::Arguments arguments{
      type_of(descs[0].type),
      descs[0].format == TensorFormat::kLINEAR ? cuda::Layout::nchw : cuda::Layout::nhwc8,
      inputs[0],
      add_ ? inputs[1] : nullptr,
      inputs[weight],
      inputs[weight + 1],
      outputs[0],
      {x.d[0], x.d[1], x.d[2], x.d[3]},
      descs[weight].dims.d[2]};
  const cudaError_t status = cuda::launch(arguments, stream);
  if (status == cudaSuccess) return 0;
  return fail([&] {
    return "the kernel for x " + text(x) + " was not launched: " + cudaGetErrorString(status);
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  field_ = {"channels", &channels_, nvinfer1::PluginFieldType::kINT32, 1};
  fields_ = {channels_ > 0 ? 1 : 0, &field_};
  return &fields_;
}

std::string Plugin::check_counts(int32_t input_count, int32_t output_count) const {
  if (input_count == expected_inputs() && output_count == 1) return "";
  return std::string(getPluginName()) + " was given " + std::to_string(input_count) + " inputs and " +
         std::to_string(output_count) + " outputs; expected " +
         (add_ ? "x, residual, weight, bias" : "x, weight, bias") + " and y";
}

// A size that is not known yet is -1.
std::string Plugin::check_shapes(const Dims* const* dims) const {
  const Dims &x = *dims[0], &weight = *dims[expected_inputs() - 2], &bias = *dims[expected_inputs() - 1];
  if (weight.nbDims != 4 || weight.d[1] != 1 || weight.d[2] != weight.d[3] || !is_supported_kernel_size(weight.d[2]))
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
      const bool is_int64 = field.type == nvinfer1::PluginFieldType::kINT64;
      if ((!is_int64 && field.type != nvinfer1::PluginFieldType::kINT32) || field.length != 1 || field.data == nullptr) {
        report(std::string(name ? name : "Sparta") + ": the field channels is of TensorRT's field type " +
               std::to_string(static_cast<int32_t>(field.type)) + ", length " + std::to_string(field.length) +
               "; expected one int32 or int64");
        return nullptr;
      }
      int32_t channels32 = 0;
      std::memcpy(is_int64 ? static_cast<void*>(&channels) : &channels32, field.data, is_int64 ? 8 : 4);
      if (!is_int64) channels = channels32;
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
