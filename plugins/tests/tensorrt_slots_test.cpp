// Compares the vtable slots in tensorrt/vtable_slots.h with the TensorRT headers that this program is compiled with.

#include <NvInferRuntime.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "../tensorrt/vtable_slots.h"

using namespace nvinfer1;

namespace {

int failures = 0;

// In the Itanium C++ ABI a pointer to a virtual member function begins with 1 + the function's offset in the vtable.
template <class Function>
void check_slot(const char* name, Function function, int expected) {
  std::intptr_t offset = 0;
  std::memcpy(&offset, &function, sizeof offset);
  const long slot = static_cast<long>((offset - 1) / static_cast<std::intptr_t>(sizeof(void*)));
  if (offset % 2 == 1 && slot == expected) return;
  std::printf("FAILED %s is at slot %ld; the table says %d\n", name, slot, expected);
  ++failures;
}

}  // namespace

int main() {
  constexpr sparta::trt::VtableSlots slots = *sparta::trt::slots_of(NV_TENSORRT_VERSION);  // null does not compile
  check_slot("ILoggerFinder::findLogger", &ILoggerFinder::findLogger, slots.find_logger);
  check_slot("ILogger::log", &ILogger::log, slots.log);
  check_slot("IPluginRegistry::registerCreator",
             static_cast<bool (IPluginRegistry::*)(IPluginCreatorInterface&, const char*) noexcept>(
                 &IPluginRegistry::registerCreator),
             slots.register_creator);
  check_slot("IPluginRegistry::deregisterCreator",
             static_cast<bool (IPluginRegistry::*)(const IPluginCreatorInterface&) noexcept>(
                 &IPluginRegistry::deregisterCreator),
             slots.deregister_creator);
  if (failures == 0) std::printf("ok: TensorRT %d\n", static_cast<int>(NV_TENSORRT_VERSION));
  return failures != 0;
}
