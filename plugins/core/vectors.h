// Vectors of SPARTA_LANES floats: load and store for float32, float16 and bfloat16, and the transposition of
// lanes x lanes elements. Included once per instruction set, see kernel_impl.h.

#pragma once

#include <stddef.h>
#include <stdint.h>

#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace sparta {
namespace {

constexpr int lanes = SPARTA_LANES;

typedef float Floats __attribute__((vector_size(lanes * 4)));
typedef int32_t Ints __attribute__((vector_size(lanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(lanes * 2)));
typedef float FloatsAt __attribute__((vector_size(lanes * 4), aligned(4), may_alias));
typedef uint16_t HalvesAt __attribute__((vector_size(lanes * 2), aligned(2), may_alias));

struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

#define SPARTA_INLINE inline __attribute__((always_inline))

SPARTA_INLINE Floats broadcast(float value) { return Floats{} + value; }

// Return a > b ? a : b, which is b if one of them is NaN. The maskz intrinsics in this file replace the plain ones,
// for which GCC 12 gives a wrong warning (GCC bug 105593).
SPARTA_INLINE Floats max_or_second(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return (a > b) ? a : b;
#endif
}

// ---- load and store; stores round to nearest even --------------------------------------------------

SPARTA_INLINE Floats load(const float* p) { return *reinterpret_cast<const FloatsAt*>(p); }
SPARTA_INLINE void store(float* p, Floats v) { *reinterpret_cast<FloatsAt*>(p) = v; }

SPARTA_INLINE Floats load(const Bfloat16* p) {
  const Halves halves = *reinterpret_cast<const HalvesAt*>(p);
  return reinterpret_cast<Floats>(__builtin_convertvector(halves, Ints) << 16);
}

SPARTA_INLINE void store(Bfloat16* p, Floats v) {
  const Ints bits = reinterpret_cast<Ints>(v);
  const Ints rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Ints quiet = bits | 0x400000;  // for NaN, which rounding could turn into infinity
  const Ints chosen = (v == v) ? rounded : quiet;
  *reinterpret_cast<HalvesAt*>(p) = __builtin_convertvector((chosen >> 16) & 0xffff, Halves);
}

#if defined(__AVX512F__)
SPARTA_INLINE Floats load(const Float16* p) {
  return (Floats)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
SPARTA_INLINE void store(Float16* p, Floats v) {
  const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
}
#elif defined(__F16C__) && defined(__AVX2__)
SPARTA_INLINE Floats load(const Float16* p) {
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
SPARTA_INLINE void store(Float16* p, Floats v) {
  const __m128i halves = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves);
}
#else
SPARTA_INLINE Floats load(const Float16* p) {
  const Ints bits = __builtin_convertvector(*reinterpret_cast<const HalvesAt*>(p), Ints);
  const Ints sign = (bits & 0x8000) << 16;
  const Ints magnitude = (bits & 0x7fff) << 13;
  // The exponent biases differ by 112. Multiplying by 2^112 is right for subnormals too.
  const Floats scaled = reinterpret_cast<Floats>(magnitude) * broadcast(0x1p112f);
  const Ints special = magnitude | 0x7f800000;  // infinities and NaN
  const Ints chosen = (magnitude >= (0x7c00 << 13)) ? special : reinterpret_cast<Ints>(scaled);
  return reinterpret_cast<Floats>(chosen | sign);
}
SPARTA_INLINE void store(Float16* p, Floats v) {
  const Ints bits = reinterpret_cast<Ints>(v);
  const Ints sign = (bits >> 16) & 0x8000;
  const Ints magnitude = bits & 0x7fffffff;
  const Ints normal = ((magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13) - (112 << 10);
  // Adding 0.5 leaves the rounded subnormal in the low bits of the sum.
  const Floats shifted = reinterpret_cast<Floats>(magnitude) + broadcast(0.5f);
  const Ints small = reinterpret_cast<Ints>(shifted) - 0x3f000000;
  Ints result = (magnitude < (113 << 23)) ? small : normal;
  result = (magnitude >= (143 << 23)) ? Ints{} + 0x7c00 : result;
  result = (result > 0x7c00) ? Ints{} + 0x7c00 : result;
  result = (magnitude > 0x7f800000) ? Ints{} + 0x7e00 : result;
  *reinterpret_cast<HalvesAt*>(p) = __builtin_convertvector((result | sign) & 0xffff, Halves);
}
#endif

// Load or store the first min(count, lanes) elements of a vector.
template <class T>
SPARTA_INLINE Floats load_first(const T* p, int64_t count) {
  if (count >= lanes) return load(p);
  T padded[lanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = p[i];
  return load(padded);
}
template <class T>
SPARTA_INLINE void store_first(T* p, Floats v, int64_t count) {
  if (count >= lanes) return store(p, v);
  T padded[lanes];
  store(padded, v);
  for (int64_t i = 0; i < count; ++i) p[i] = padded[i];
}

// ---- transposition -----------------------------------------------------------------------------------

// One of the two results of exchanging the off-diagonal squares of `distance` x `distance` elements between rows a
// and b: the odd squares of both if `high`, else the even ones. Shuffle indices from `lanes` on select from b.
template <int distance, bool high, int... j>
SPARTA_INLINE Floats exchange(Floats a, Floats b, std::integer_sequence<int, j...>) {
#if defined(__clang__)
#define SPARTA_SHUFFLE(...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SPARTA_SHUFFLE(...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif
  if constexpr (high) {
    return SPARTA_SHUFFLE((j & distance ? j + lanes : j + distance)...);
  } else {
    return SPARTA_SHUFFLE((j & distance ? j - distance + lanes : j)...);
  }
#undef SPARTA_SHUFFLE
}

// Transpose lanes x lanes elements in place, in log2(lanes) rounds of exchanges.
template <int distance = 1>
SPARTA_INLINE void transpose(Floats* v) {
  if constexpr (distance < lanes) {
    constexpr std::make_integer_sequence<int, lanes> all_lanes;
    for (int i = 0; i < lanes; ++i) {
      if (i & distance) continue;
      const Floats a = v[i], b = v[i + distance];
      v[i] = exchange<distance, false>(a, b, all_lanes);
      v[i + distance] = exchange<distance, true>(a, b, all_lanes);
    }
    transpose<distance * 2>(v);
  }
}

}  // namespace
}  // namespace sparta
