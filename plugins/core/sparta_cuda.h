// Sparta on a GPU. Compiled by nvcc where there is one.

#pragma once

#include <cstdint>

#include "sparta.h"

namespace sparta {
namespace cuda {

// y = Sparta(x) on a CUDA stream, without waiting for it; all pointers are the device's, x is not y.
// weight is [shape.c, k, k], bias [shape.c], of the same type as x.
//
// Returns null, or what CUDA says went wrong with the launch.
const char* launch(Type type, const void* x, const void* weight, const void* bias, void* y, const Shape& shape,
                   int64_t k, void* stream);

}  // namespace cuda
}  // namespace sparta
