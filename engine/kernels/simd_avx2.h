// Sixteen floats in two AVX registers, with the meaning of scalar_math.h. Only
// for files that are compiled for AVX2, FMA and F16C: all is internal to them,
// so that the linker cannot pick this code for anybody else.
#ifndef XCACHE_ENGINE_KERNELS_SIMD_AVX2_H_
#define XCACHE_ENGINE_KERNELS_SIMD_AVX2_H_

#include <immintrin.h>

#include <cstdint>

#define XCACHE_INLINE __attribute__((always_inline)) inline

namespace xcache {
namespace {

// Register tiles of the floating-point product: rows x vectors. 6 sums and a
// vector of B, two registers each, and a broadcast are 15 of 16 registers.
constexpr int kRowTile = 6;
constexpr int kVecTile = 1;

// A register's bits, for what is the same in every width.
typedef uint16_t Words __attribute__((vector_size(32)));

struct F {
  __m256 lo, hi;
};

// All ones in the first n of eight lanes.
XCACHE_INLINE __m256i FirstOf8(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

XCACHE_INLINE F Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
XCACHE_INLINE F Set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
XCACHE_INLINE F Load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
XCACHE_INLINE void Store(F a, float* p) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
// The first n lanes, n < 16; the others are zero.
XCACHE_INLINE F LoadN(const float* p, int n) {
  return {_mm256_maskload_ps(p, FirstOf8(n)),
          _mm256_maskload_ps(p + 8, FirstOf8(n - 8))};
}
XCACHE_INLINE void StoreN(F a, float* p, int n) {
  _mm256_maskstore_ps(p, FirstOf8(n), a.lo);
  _mm256_maskstore_ps(p + 8, FirstOf8(n - 8), a.hi);
}
XCACHE_INLINE F LoadF16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
XCACHE_INLINE void StoreF16(F a, uint16_t* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                   _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
XCACHE_INLINE __m256 LoadBf16By8(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
XCACHE_INLINE F LoadBf16(const uint16_t* p) {
  return {LoadBf16By8(p), LoadBf16By8(p + 8)};
}
// Integers in [-127, 127] as int8.
XCACHE_INLINE void StoreI8(F a, int8_t* p) {
  const __m256i mixed =
      _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
  const __m256i words = _mm256_permute4x64_epi64(mixed, 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(words),
                                   _mm256_extracti128_si256(words, 1)));
}
XCACHE_INLINE void StoreI16(F a, int16_t* p) {
  const __m256i mixed =
      _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm256_permute4x64_epi64(mixed, 0xd8));
}

XCACHE_INLINE F Add(F a, F b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
XCACHE_INLINE F Sub(F a, F b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
XCACHE_INLINE F Mul(F a, F b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
XCACHE_INLINE F Div(F a, F b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
XCACHE_INLINE F Fma(F a, F b, F c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
XCACHE_INLINE F FmaNeg(F a, F b, F c) {  // a * b - c
  return {_mm256_fmsub_ps(a.lo, b.lo, c.lo), _mm256_fmsub_ps(a.hi, b.hi, c.hi)};
}
// a > b ? a : b and a < b ? a : b
XCACHE_INLINE F Max(F a, F b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
XCACHE_INLINE F Min(F a, F b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
XCACHE_INLINE F Abs(F a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
XCACHE_INLINE F Negate(F a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(sign, a.lo), _mm256_xor_ps(sign, a.hi)};
}
// x >= limit ? value : 0
XCACHE_INLINE F ZeroBelow(F x, float limit, F value) {
  const __m256 l = _mm256_set1_ps(limit);
  return {_mm256_and_ps(_mm256_cmp_ps(x.lo, l, _CMP_GE_OQ), value.lo),
          _mm256_and_ps(_mm256_cmp_ps(x.hi, l, _CMP_GE_OQ), value.hi)};
}
// The first n lanes of a (n may be negative or beyond 16), then `other`.
XCACHE_INLINE F KeepFirst(F a, int n, F other) {
  return {
      _mm256_blendv_ps(other.lo, a.lo, _mm256_castsi256_ps(FirstOf8(n))),
      _mm256_blendv_ps(other.hi, a.hi, _mm256_castsi256_ps(FirstOf8(n - 8)))};
}
// p * 2^n, where the low bits of `shifted` are n.
XCACHE_INLINE __m256 ScaleBy8(__m256 p, __m256 shifted) {
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(p),
                       _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}
XCACHE_INLINE F ScaleByExponent(F p, F shifted) {
  return {ScaleBy8(p.lo, shifted.lo), ScaleBy8(p.hi, shifted.hi)};
}

XCACHE_INLINE float SumLanes(F a) {
  const __m256 by8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 by4 =
      _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}
XCACHE_INLINE float MaxLane(F a) {
  const __m256 by8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 by4 =
      _mm_max_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_max_ss(by2, _mm_movehdup_ps(by2)));
}

// Eight values, each twice.
XCACHE_INLINE F LoadPairs(const float* p) {
  const __m256 a = _mm256_loadu_ps(p);
  const __m256 low = _mm256_unpacklo_ps(a, a);   // 0 0 1 1 | 4 4 5 5
  const __m256 high = _mm256_unpackhi_ps(a, a);  // 2 2 3 3 | 6 6 7 7
  return {_mm256_permute2f128_ps(low, high, 0x20),
          _mm256_permute2f128_ps(low, high, 0x31)};
}
XCACHE_INLINE F SwapPairs(F a) {
  return {_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)};
}
XCACHE_INLINE F NegateEven(F a) {
  const __m256 sign =
      _mm256_setr_ps(-0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f);
  return {_mm256_xor_ps(a.lo, sign), _mm256_xor_ps(a.hi, sign)};
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_SIMD_AVX2_H_
