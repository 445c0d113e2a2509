// Where the plugin's messages go: to TensorRT's own logger where it can be asked for, to standard error otherwise.

#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace sparta {
namespace trt {

// Takes the finder that TensorRT gives. It is asked only if the library that it belongs to has the layout of
// the headers this was built with: ILoggerFinder and ILogger are not the same in TensorRT 10 and 11.
void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// Reports an error and keeps it for last_error().
void report(const std::string& message) noexcept;

// The last error of this process, or an empty text. What is returned stays as it is until the thread asks again.
const char* last_error() noexcept;

// The major version of the TensorRT library that an object's class comes from, 0 where it is no such library.
int major_of(const void* object) noexcept;

}  // namespace trt
}  // namespace sparta
