// The kernels for x86-64 with AVX-512 F, BW, DQ and VL. CMakeLists.txt sets the compiler flags.

#include "kernel.h"

#if defined(__AVX512F__) && defined(__AVX512VL__)

#define SPARTA_NAME "avx512"
#define SPARTA_LANES 16
#include "kernel_impl.h"

namespace sparta {
const Kernels* avx512_kernels() { return &kernels; }
}  // namespace sparta

#else

namespace sparta {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace sparta

#endif
