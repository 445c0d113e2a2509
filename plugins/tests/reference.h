// The storage types by their definition, and tensors whose every access a sanitizer checks.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#include "sparta.h"

namespace {

using sparta::Type;

struct Format {
  int mantissa, min_exponent, max_exponent;  // bits; exponents of the smallest and of the largest normal number
};
constexpr Format formats[] = {{23, -126, 127}, {10, -14, 15}, {7, -126, 127}};

// Round to nearest even, to infinity beyond the largest number.
double round_to(double value, Type type) {
  const Format& f = formats[static_cast<int>(type)];
  if (value == 0 || std::isnan(value) || std::isinf(value)) return value;
  const int exponent = std::max(std::ilogb(value), f.min_exponent);
  const double unit = std::ldexp(1.0, exponent - f.mantissa);
  const double rounded = std::nearbyint(value / unit) * unit;
  const double largest = std::ldexp(2.0 - std::ldexp(1.0, -f.mantissa), f.max_exponent);
  return std::abs(rounded) > largest ? std::copysign(INFINITY, value) : rounded;
}

// Return the unit in the last place of a value.
inline double ulp(double value, Type type) {
  const Format& f = formats[static_cast<int>(type)];
  const int exponent = value == 0 ? f.min_exponent : std::max(std::ilogb(value), f.min_exponent);
  return std::ldexp(1.0, exponent - f.mantissa);
}

void encode(double value, Type type, char* to) {
  if (type == Type::float32) {
    const float v = static_cast<float>(value);
    std::memcpy(to, &v, 4);
    return;
  }
  uint16_t bits;
  if (type == Type::bfloat16) {
    const float v = static_cast<float>(round_to(value, type));
    uint32_t wide;
    std::memcpy(&wide, &v, 4);
    bits = static_cast<uint16_t>(wide >> 16 | (std::isnan(value) ? 0x40 : 0));
  } else {
    const double v = round_to(value, type);
    const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
    const double magnitude = std::abs(v);
    if (std::isnan(v)) {
      bits = 0x7e00;
    } else if (std::isinf(v)) {
      bits = 0x7c00;
    } else if (magnitude < std::ldexp(1.0, -14)) {
      bits = static_cast<uint16_t>(std::ldexp(magnitude, 24));
    } else {
      const int exponent = std::ilogb(magnitude);
      bits = static_cast<uint16_t>(((exponent + 15) << 10) | (static_cast<int>(std::ldexp(magnitude, 10 - exponent)) & 1023));
    }
    bits |= sign;
  }
  std::memcpy(to, &bits, 2);
}

double decode(const char* from, Type type) {
  if (type == Type::float32) {
    float v;
    std::memcpy(&v, from, 4);
    return v;
  }
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  if (type == Type::bfloat16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float v;
    std::memcpy(&v, &wide, 4);
    return v;
  }
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 31  ? (mantissa ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// A tensor in a heap block of exactly its size, starting `shift` elements after an aligned address.
class Tensor {
 public:
  Tensor(Type type, size_t count, size_t shift)
      : type_(type), size_(type == Type::float32 ? 4 : 2), count_(count), shift_(shift),
        bytes_(new char[(count + shift) * size_]) {}
  void* data() { return bytes_.get() + shift_ * size_; }
  double at(size_t i) const { return decode(bytes_.get() + (shift_ + i) * size_, type_); }
  void set(size_t i, double value) { encode(value, type_, bytes_.get() + (shift_ + i) * size_); }
  size_t count() const { return count_; }

 private:
  Type type_;
  size_t size_, count_, shift_;
  std::unique_ptr<char[]> bytes_;
};

}  // namespace
