// The plugins for TensorRT 10 and 11: Sparta (x, weight, bias) and SpartaAdd (x, residual, weight, bias), computed by
// core/sparta_cuda.h. All inputs and y have the same type: float32, float16 or bfloat16. x, residual and y have the same
// format: kLINEAR, or kHWC8 if core has a kernel for it. weight and bias are kLINEAR.

#pragma once

#include <NvInferRuntime.h>

#include <string>

#include "sparta.h"

namespace sparta {
namespace trt {

constexpr const char* version = "1";
constexpr const char* name_space = "";  // the parser's default for a node without plugin_namespace

// Errors are reported (log.h) and returned as a non-zero status or null. Nothing throws.
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  // `channels` is the node's attribute, 0 if it has none.
  Plugin(bool add, int32_t channels) noexcept : add_(add), channels_(channels) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return add_ ? "SpartaAdd" : "Sparta"; }
  const char* getPluginVersion() const noexcept override { return version; }
  const char* getPluginNamespace() const noexcept override { return name_space; }

  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count, const nvinfer1::DataType* inputs,
                             int32_t input_count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder&) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t input_count, int32_t output_count) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept override;
  const char* getTimingCacheID() noexcept override { return version; }  // TensorRT adds shapes and formats

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                        const nvinfer1::PluginTensorDesc* outputs, int32_t output_count) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  int32_t expected_inputs() const { return add_ ? 4 : 3; }
  // Return an error message, "" if there is no error.
  std::string check_counts(int32_t input_count, int32_t output_count) const;
  std::string check_shapes(const nvinfer1::Dims* const* dims) const;

  bool add_;
  int32_t channels_;
  nvinfer1::PluginField field_;
  nvinfer1::PluginFieldCollection fields_{};
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(bool add) noexcept : add_(add) {}

  // The optional field "channels" is one int32 or int64, at least 1.
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }
  const char* getPluginName() const noexcept override { return add_ ? "SpartaAdd" : "Sparta"; }
  const char* getPluginVersion() const noexcept override { return version; }
  const char* getPluginNamespace() const noexcept override { return name_space; }

 private:
  bool add_;
  nvinfer1::PluginField field_{"channels", nullptr, nvinfer1::PluginFieldType::kINT32, 1};
  nvinfer1::PluginFieldCollection fields_{1, &field_};
};

}  // namespace trt
}  // namespace sparta
