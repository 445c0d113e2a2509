// The custom operator library for ONNX Runtime: ai.sparta::Sparta for the CPU provider, and for the CUDA provider if
// SPARTA_CUDA is defined.
//
// Inputs x [N, C, H, W], weight [C, 1, k, k], bias [C]; output y like x; all float32, all float16 or all bfloat16.
// SpartaBlocked does the same in ONNX Runtime's blocked layout, for float32 only. No exporter writes it:
// robust_export.runtimes.ort_blocked uses it to replace a reorder, Sparta and a reorder back.

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "sparta.h"
#if defined(SPARTA_CUDA)
#include "sparta_cuda.h"
#endif

namespace {

// The lowest API version with everything used here: GetMayInplace came with ONNX Runtime 1.18. Requesting it, and not
// the headers' own version, makes the library load in every later ONNX Runtime.
constexpr uint32_t api_version = 18;

std::string text(const std::vector<int64_t>& shape) {
  std::string result = "[";
  for (size_t i = 0; i < shape.size(); ++i) result += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return result + "]";
}

// Call body() and return an exception as ONNX Runtime's status, with the node's name in the message.
template <class Body>
OrtStatus* to_status(const std::string& node, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const Ort::Exception& error) {
    return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), (node + ": " + error.what()).c_str());
  } catch (const std::bad_alloc&) {
    return Ort::GetApi().CreateStatus(ORT_FAIL, (node + ": out of memory").c_str());
  } catch (const std::exception& error) {
    return Ort::GetApi().CreateStatus(ORT_INVALID_ARGUMENT, (node + ": " + error.what()).c_str());
  }
}

// Return the calling session's intra-op thread pool.
sparta::Pool pool_of(OrtKernelContext* context) {
  return {context, [](void* context, void (*task)(void*, size_t), size_t count, void* argument) {
            if (count == 1) return task(argument, 0);
            Ort::KernelContext(static_cast<OrtKernelContext*>(context)).ParallelFor(task, count, 0, argument);
          }};
}

sparta::Type type_of(const Ort::ConstValue& value, const char* name) {
  switch (value.GetTensorTypeAndShapeInfo().GetElementType()) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return sparta::Type::float32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return sparta::Type::float16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return sparta::Type::bfloat16;
    default: throw std::invalid_argument(std::string(name) + " is neither float32 nor float16 nor bfloat16");
  }
}

// Return k. Throws std::invalid_argument if weight and bias do not fit together.
int64_t check_parameters(const Ort::ConstValue& weight, const Ort::ConstValue& bias) {
  if (type_of(weight, "weight") != type_of(bias, "bias"))
    throw std::invalid_argument("weight and bias are of different types");
  const auto w = weight.GetTensorTypeAndShapeInfo().GetShape();
  const auto b = bias.GetTensorTypeAndShapeInfo().GetShape();
  if (w.size() != 4 || w[1] != 1 || w[2] != w[3] || !sparta::is_supported_kernel_size(w[2]))
    throw std::invalid_argument("weight is " + text(w) + "; expected [C, 1, k, k] with k = 1, 3, 5 or 7");
  if (b.size() != 1 || b[0] != w[0])
    throw std::invalid_argument("bias is " + text(b) + ", weight is " + text(w) + "; expected bias [" +
                                std::to_string(w[0]) + "]");
  return w[2];
}

void check_x(const std::vector<int64_t>& x, int64_t channels, int64_t expected) {
  if (x.size() != 4 || x[1] != expected)
    throw std::invalid_argument("x is " + text(x) + ", weight has " + std::to_string(channels) +
                                " channels; expected x [N, " + std::to_string(expected) + ", H, W]");
}

sparta::PackedWeights pack_weights(const Ort::ConstValue& weight, const Ort::ConstValue& bias, int64_t block) {
  const int64_t k = check_parameters(weight, bias);
  const int64_t channels = bias.GetTensorTypeAndShapeInfo().GetShape()[0];
  return {weight.GetTensorRawData(), bias.GetTensorRawData(), type_of(weight, "weight"), channels, k, block};
}

// Shape inference: y has the shape and type of x.
OrtStatus* ORT_API_CALL infer_shape(const OrtCustomOp*, OrtShapeInferContext* context) {
  const OrtApi& api = Ort::GetApi();
  OrtTensorTypeAndShapeInfo* x = nullptr;  // owned by the context
  if (OrtStatus* const status = api.ShapeInferContext_GetInputTypeShape(context, 0, &x)) return status;
  size_t rank = 0;
  if (OrtStatus* const status = api.GetDimensionsCount(x, &rank)) return status;
  // An unknown shape is reported as rank 0. Passing it on would declare y a scalar.
  return rank == 0 ? nullptr : api.ShapeInferContext_SetOutputTypeShape(context, 0, x);
}

class Kernel {
 public:
  Kernel(const Ort::ConstKernelInfo& info, std::string node, bool blocked) : name_(std::move(node)) {
    if (blocked) {
      block_ = info.GetAttribute<int64_t>("block");
      if (block_ != 8 && block_ != 16)
        throw std::invalid_argument("block is " + std::to_string(block_) + "; expected 8 or 16");
    }
    int constant_weight = 0, constant_bias = 0;
    const Ort::ConstValue weight = info.GetTensorConstantInput(1, &constant_weight);
    const Ort::ConstValue bias = info.GetTensorConstantInput(2, &constant_bias);
    if (constant_weight && constant_bias)
      packed_ = std::make_unique<sparta::PackedWeights>(pack_weights(weight, bias, block_));
  }

  OrtStatus* ComputeV2(OrtKernelContext* context) const {
    return to_status(name_, [&] { compute(Ort::KernelContext{context}, pool_of(context)); });
  }

 private:
  void compute(const Ort::KernelContext& context, const sparta::Pool& pool) const {
    const Ort::ConstValue x = context.GetInput(0);
    const sparta::Type type = type_of(x, "x");
    const auto shape = x.GetTensorTypeAndShapeInfo().GetShape();
    std::unique_ptr<sparta::PackedWeights> packed_now;
    if (packed_ == nullptr)
      packed_now = std::make_unique<sparta::PackedWeights>(
          pack_weights(context.GetInput(1), context.GetInput(2), block_));
    const sparta::PackedWeights& weights = packed_ ? *packed_ : *packed_now;
    const int64_t channels = weights.channels();
    const int64_t expected = block_ == 0 ? channels : (channels + block_ - 1) / block_ * block_;
    check_x(shape, channels, expected);
    Ort::UnownedValue y = context.GetOutput(0, shape);
    const sparta::Shape sizes{shape[0], shape[1], shape[2], shape[3]};
    if (block_ == 0) {
      sparta::forward_nchw(weights, type, x.GetTensorRawData(), y.GetTensorMutableRawData(), sizes, pool);
    } else {
      sparta::forward_nchwc(weights, x.GetTensorData<float>(), y.GetTensorMutableData<float>(), sizes, pool);
    }
  }

  std::string name_;
  int64_t block_ = 0;  // channels per block, 0 for [N, C, H, W]
  std::unique_ptr<const sparta::PackedWeights> packed_;  // set if weight and bias are initializers
};

#if defined(SPARTA_CUDA)

// Runs on the CUDA provider's stream. weight and bias are read on the device, so nothing is packed.
class CudaKernel {
 public:
  explicit CudaKernel(std::string node) : name_(std::move(node)) {}

  OrtStatus* ComputeV2(OrtKernelContext* raw) const {
    return to_status(name_, [&] {
      const Ort::KernelContext context{raw};
      const Ort::ConstValue x = context.GetInput(0), weight = context.GetInput(1), bias = context.GetInput(2);
      const int64_t k = check_parameters(weight, bias);
      const auto shape = x.GetTensorTypeAndShapeInfo().GetShape();
      const int64_t channels = bias.GetTensorTypeAndShapeInfo().GetShape()[0];
      check_x(shape, channels, channels);
      const sparta::Type type = type_of(x, "x");
      if (type != type_of(weight, "weight")) throw std::invalid_argument("x and weight are of different types");
      Ort::UnownedValue y = context.GetOutput(0, shape);
      const sparta::cuda::Arguments arguments{type, sparta::cuda::Layout::nchw, x.GetTensorRawData(), nullptr,
                                              weight.GetTensorRawData(), bias.GetTensorRawData(),
                                              y.GetTensorMutableRawData(), {shape[0], shape[1], shape[2], shape[3]}, k};
      const cudaError_t status =
          sparta::cuda::launch(arguments, static_cast<cudaStream_t>(context.GetGPUComputeStream()));
      if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
    });
  }

 private:
  std::string name_;
};

struct CudaOp : Ort::CustomOpBase<CudaOp, CudaKernel, true> {
  CudaOp() {
    OrtCustomOp::version = api_version;
    OrtCustomOp::InferOutputShapeFn = infer_shape;
  }
  const char* GetName() const { return "Sparta"; }
  const char* GetExecutionProviderType() const { return "CUDAExecutionProvider"; }
  size_t GetInputTypeCount() const { return 3; }
  ONNXTensorElementDataType GetInputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }
  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* raw, void** kernel) const {
    return to_status("Sparta", [&] { *kernel = new CudaKernel(Ort::ConstKernelInfo{raw}.GetNodeName()); });
  }
};

#endif

// Sparta declares no element type: ONNX Runtime finds no custom operator that declares bfloat16. Undeclared inputs must
// all have the same type, which ONNX Runtime checks.
template <bool blocked>
struct Op : Ort::CustomOpBase<Op<blocked>, Kernel, true> {
  Op() {
    OrtCustomOp::version = api_version;
    OrtCustomOp::GetMayInplace = [](int** inputs, int** outputs) -> size_t {
      *inputs = new int[1]{0};
      *outputs = new int[1]{0};
      return 1;
    };
    OrtCustomOp::InferOutputShapeFn = infer_shape;
    OrtCustomOp::ReleaseMayInplace = [](int* inputs, int* outputs) {
      delete[] inputs;
      delete[] outputs;
    };
  }
  const char* GetName() const { return blocked ? "SpartaBlocked" : "Sparta"; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return 3; }
  ONNXTensorElementDataType GetInputType(size_t) const { return element; }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return element; }
  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* raw, void** kernel) const {
    std::string node = "Sparta";
    return to_status(node, [&] {
      const Ort::ConstKernelInfo info{raw};
      node = info.GetNodeName();
      *kernel = new Kernel(info, node, blocked);
    });
  }

  static constexpr ONNXTensorElementDataType element =
      blocked ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
};

}  // namespace

// Return 1 if the library has the CUDA kernel, else 0.
extern "C" __attribute__((visibility("default"))) int sparta_has_cuda() {
#if defined(SPARTA_CUDA)
  return 1;
#else
  return 0;
#endif
}

// Return the instruction set that the kernels use on this CPU, for `robust-export plugins info`.
extern "C" __attribute__((visibility("default"))) const char* sparta_instructions() {
  return sparta::instructions();
}

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  const OrtApi* const api = base->GetApi(api_version);
  if (api == nullptr)
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "libsparta_ort needs ONNX Runtime 1.18 or later");
  static const bool initialised = [&] {
    Ort::InitApi(api);  // only once, because kernels of other sessions may be reading it
    return true;
  }();
  (void)initialised;
  return to_status("sparta_ort", [&] {
    // Created once and shared: several sessions may add the domain, from any thread.
    static const Op<false> nchw;
    static const Op<true> blocked;
    static const Ort::CustomOpDomain domain = [] {
      Ort::CustomOpDomain result{"ai.sparta"};
      result.Add(&nchw);
      result.Add(&blocked);
#if defined(SPARTA_CUDA)
      static const CudaOp cuda;
      result.Add(&cuda);
#endif
      return result;
    }();
    Ort::UnownedSessionOptions{options}.Add(domain);
  });
}
