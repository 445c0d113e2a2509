// The kernels for x86-64 with AVX2, FMA and F16C. CMakeLists.txt sets the compiler flags.

#include "kernel.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#define SPARTA_NAME "avx2"
#define SPARTA_LANES 8
#include "kernel_impl.h"

namespace sparta {
const Kernels* avx2_kernels() { return &kernels; }
}  // namespace sparta

#else

namespace sparta {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace sparta

#endif
