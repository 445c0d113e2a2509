// Helpers of the tests of the TensorRT plugin: CHECK, and opening a library and finding its functions.

#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#define CHECK(condition)                                                \
  do {                                                                  \
    if (!(condition)) {                                                 \
      std::printf("FAILED %s:%d %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                     \
    }                                                                   \
  } while (false)

// Return an exported function of a library that is open.
template <class Function>
Function* find(void* library, const char* name) {
  void* const function = dlsym(library, name);
  CHECK(function != nullptr);
  return reinterpret_cast<Function*>(function);
}

// Open a library.
inline void* open(const std::string& path) {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) std::printf("%s\n", dlerror());
  CHECK(library != nullptr);
  return library;
}
