// A stand-in for a TensorRT of another version than the headers. Its objects have vtables with functions in the slots of
// STAND_IN_LAYOUT (10 or 11) only; a call of any other slot aborts. STAND_IN_VERSION is the version it reports. Both are
// environment variables.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int slot_count = 32;

struct Object {
  void** vtable;
};

void* registry_vtable[slot_count];
void* logger_vtable[slot_count];
void* finder_vtable[slot_count];
Object registry{registry_vtable}, logger{logger_vtable}, finder{finder_vtable};

int registered = 0;
std::string logged;

void unexpected_call(void*) {
  std::printf("FAILED a virtual function was called that the plugin must not call\n");
  std::abort();
}

bool register_creator(void*, void*, const char*) {
  ++registered;
  return true;
}

bool deregister_creator(void*, void*) {
  --registered;
  return true;
}

void* find_logger(void*) { return &logger; }

void log(void*, int32_t severity, const char* message) { logged = std::to_string(severity) + " " + message; }

int number(const char* variable) {
  const char* const value = std::getenv(variable);
  return value ? std::atoi(value) : 0;
}

// The slots are written here a second time, so that an error in tensorrt/vtable_slots.h is detected.
struct FillVtables {
  FillVtables() {
    for (void** const vtable : {registry_vtable, logger_vtable, finder_vtable})
      for (int i = 0; i < slot_count; ++i) vtable[i] = reinterpret_cast<void*>(unexpected_call);
    const bool eleven = number("STAND_IN_LAYOUT") == 11;
    registry_vtable[eleven ? 8 : 12] = reinterpret_cast<void*>(register_creator);
    registry_vtable[eleven ? 11 : 15] = reinterpret_cast<void*>(deregister_creator);
    finder_vtable[eleven ? 4 : 0] = reinterpret_cast<void*>(find_logger);
    logger_vtable[eleven ? 4 : 0] = reinterpret_cast<void*>(log);
  }
} fill_vtables;

}  // namespace

EXPORT void* getPluginRegistry() { return &registry; }
EXPORT void* getLogger() { return &logger; }
EXPORT int32_t getInferLibVersion() { return number("STAND_IN_VERSION"); }

// Functions for the test.
EXPORT int stand_in_registered() { return registered; }
EXPORT const char* stand_in_logged() { return logged.c_str(); }
EXPORT void* stand_in_finder() { return &finder; }
