// Positions of the virtual functions that the plugin calls in the vtables of TensorRT's classes, counted from 0 as the
// Itanium C++ ABI lays them out (a virtual destructor takes two slots). They are used for a TensorRT whose major
// version is not that of the headers the plugin was compiled with.
//
// plugins/tests/tensorrt_slots_test.cpp compares them with the headers it is compiled with. They were compared with
// the headers of TensorRT 10.0 to 10.16, 11.0 and 11.1. TensorRT for RTX publishes no headers; 1.7 was tested by running.

#pragma once

#include <cstdint>

namespace sparta {
namespace trt {

struct VtableSlots {
  int find_logger;         // ILoggerFinder::findLogger
  int log;                 // ILogger::log
  int register_creator;    // IPluginRegistry::registerCreator(IPluginCreatorInterface&, const char*)
  int deregister_creator;  // IPluginRegistry::deregisterCreator(const IPluginCreatorInterface&)
};

constexpr VtableSlots slots_10{0, 0, 12, 15};
constexpr VtableSlots slots_11{4, 4, 8, 11};

// The versions that slots_of knows, for error messages.
constexpr const char* supported_versions = "TensorRT 10, TensorRT 11 and TensorRT for RTX 1.7";

// A major version as getInferLibVersion counts it: 101400 is TensorRT 10.14.0, 10701 is TensorRT for RTX 1.7.1 and
// 8601 is TensorRT 8.6.1, whose major version comes out as 0.
constexpr int32_t major_of(int32_t version) { return version / 10000; }

// Return the slots for a version that getInferLibVersion returned, null if they are not known.
constexpr const VtableSlots* slots_of(int32_t version) {
  switch (major_of(version)) {
    case 11: return &slots_11;
    case 10: return &slots_10;
    case 1: return version / 100 == 107 ? &slots_11 : nullptr;
    default: return nullptr;
  }
}

}  // namespace trt
}  // namespace sparta
