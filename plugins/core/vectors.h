// Vectors of SPARTA_LANES floats: from memory and back, whatever the storage is, and turned from rows to
// columns. Included once for each set of instructions, as kernel_impl.h says.

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

// The maskz forms below stand for the plain ones, of which GCC 12 warns for no reason (its bug 105593).
#define SPARTA_INLINE inline __attribute__((always_inline))

SPARTA_INLINE Floats all(float value) { return Floats{} + value; }

// a > b ? a : b, thus b where one of them is NaN.
SPARTA_INLINE Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return (a > b) ? a : b;
#endif
}

// ---- storage: a vector from memory, and back, rounded to nearest even ----------------------------

SPARTA_INLINE Floats load(const float* p) { return *reinterpret_cast<const FloatsAt*>(p); }
SPARTA_INLINE void store(float* p, Floats v) { *reinterpret_cast<FloatsAt*>(p) = v; }

SPARTA_INLINE Floats load(const Bfloat16* p) {
  const Halves halves = *reinterpret_cast<const HalvesAt*>(p);
  return reinterpret_cast<Floats>(__builtin_convertvector(halves, Ints) << 16);
}

SPARTA_INLINE void store(Bfloat16* p, Floats v) {
  const Ints bits = reinterpret_cast<Ints>(v);
  const Ints rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Ints quiet = bits | 0x400000;  // of a NaN: rounding it could make it infinite
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
  // The exponents differ by 112; multiplying by 2^112 scales subnormals too.
  const Floats scaled = reinterpret_cast<Floats>(magnitude) * all(0x1p112f);
  const Ints special = magnitude | 0x7f800000;  // infinities and NaN
  const Ints chosen = (magnitude >= (0x7c00 << 13)) ? special : reinterpret_cast<Ints>(scaled);
  return reinterpret_cast<Floats>(chosen | sign);
}
SPARTA_INLINE void store(Float16* p, Floats v) {
  const Ints bits = reinterpret_cast<Ints>(v);
  const Ints sign = (bits >> 16) & 0x8000;
  const Ints magnitude = bits & 0x7fffffff;
  const Ints normal = ((magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13) - (112 << 10);
  // Adding 0.5 leaves the subnormal's bits, rounded, at the end of the sum.
  const Floats shifted = reinterpret_cast<Floats>(magnitude) + all(0.5f);
  const Ints small = reinterpret_cast<Ints>(shifted) - 0x3f000000;
  Ints result = (magnitude < (113 << 23)) ? small : normal;
  result = (magnitude >= (143 << 23)) ? Ints{} + 0x7c00 : result;
  result = (result > 0x7c00) ? Ints{} + 0x7c00 : result;
  result = (magnitude > 0x7f800000) ? Ints{} + 0x7e00 : result;
  *reinterpret_cast<HalvesAt*>(p) = __builtin_convertvector((result | sign) & 0xffff, Halves);
}
#endif

// The first `count` of a vector's elements, from memory and back.
template <class T>
SPARTA_INLINE Floats load_up_to(const T* p, int64_t count) {
  if (count >= lanes) return load(p);
  T padded[lanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = p[i];
  return load(padded);
}
template <class T>
SPARTA_INLINE void store_up_to(T* p, Floats v, int64_t count) {
  if (count >= lanes) return store(p, v);
  T padded[lanes];
  store(padded, v);
  for (int64_t i = 0; i < count; ++i) p[i] = padded[i];
}

// ---- rows to columns ----------------------------------------------------------------------------------

// Where `high`, the odd squares of b under those of a; the even ones of both otherwise: the exchange of
// off-diagonal squares of `distance` elements. Elements of b count from `lanes` on.
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

// Lanes x lanes elements, rows to columns: log2(lanes) rounds of exchanges.
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
