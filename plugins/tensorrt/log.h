// Error messages of the plugin: to TensorRT's logger if there is one, else to standard error.

#pragma once

#include <NvInferRuntime.h>

#include <string>

#include "host.h"

namespace sparta {
namespace trt {

// Use a host's logger finder from now on; null for none.
void set_logger_finder(nvinfer1::ILoggerFinder* finder, const Host& host);

// Log an error and keep it for last_error().
void report(const std::string& message) noexcept;

// Return the last error of this process, or "". The text stays valid until the same thread calls this again.
const char* last_error() noexcept;

}  // namespace trt
}  // namespace sparta
