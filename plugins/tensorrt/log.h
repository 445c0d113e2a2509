// Where the plugin's messages go: to TensorRT's own logger where there is one, to standard error otherwise.

#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace sparta {
namespace trt {

// Takes the finder that TensorRT gives when it loads a library; null for none.
void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// Reports an error and keeps it for last_error().
void report(const std::string& message) noexcept;

// The last error of this process, or an empty text. What is returned stays as it is until the thread asks again.
const char* last_error() noexcept;

}  // namespace trt
}  // namespace sparta
