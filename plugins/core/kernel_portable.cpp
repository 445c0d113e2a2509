// The kernels for every CPU: vectors of the architecture's baseline (SSE2, NEON), chosen by the compiler.

#define SPARTA_NAME "portable"
#define SPARTA_LANES 4
#include "kernel_impl.h"

namespace sparta {
const Kernels& portable_kernels() { return kernels; }
}  // namespace sparta
