// Sixteen floats in one AVX-512 register, with the meaning of scalar_math.h.
// Only for files that are compiled for AVX-512: all is internal to them, so
// that the linker cannot pick this code for anybody else.
#ifndef XCACHE_ENGINE_KERNELS_SIMD_AVX512_H_
#define XCACHE_ENGINE_KERNELS_SIMD_AVX512_H_

#include <immintrin.h>

#include <cstdint>

#define XCACHE_INLINE __attribute__((always_inline)) inline

namespace xcache {
namespace {

// Register tiles of the floating-point product: rows x vectors. 6 x 4 sums, 4
// vectors of B and a broadcast are 29 of 32 registers.
constexpr int kRowTile = 6;
constexpr int kVecTile = 4;

// A register's bits, for what is the same in every width.
typedef uint16_t Words __attribute__((vector_size(64)));

struct F {
  __m512 v;
};

XCACHE_INLINE __mmask16 FirstLanes(int n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffff : (1 << n) - 1);
}

XCACHE_INLINE F Zero() { return {_mm512_setzero_ps()}; }
XCACHE_INLINE F Set1(float x) { return {_mm512_set1_ps(x)}; }
XCACHE_INLINE F Load(const float* p) { return {_mm512_loadu_ps(p)}; }
XCACHE_INLINE void Store(F a, float* p) { _mm512_storeu_ps(p, a.v); }
// The first n lanes, n < 16; the others are zero.
XCACHE_INLINE F LoadN(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(FirstLanes(n), p)};
}
XCACHE_INLINE void StoreN(F a, float* p, int n) {
  _mm512_mask_storeu_ps(p, FirstLanes(n), a.v);
}
XCACHE_INLINE F LoadF16(const uint16_t* p) {
  return {
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
XCACHE_INLINE void StoreF16(F a, uint16_t* p) {
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(p),
      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
XCACHE_INLINE F LoadBf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// Integers in [-127, 127] as int8.
XCACHE_INLINE void StoreI8(F a, int8_t* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

XCACHE_INLINE void StoreI16(F a, int16_t* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a.v)));
}

XCACHE_INLINE F Add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
XCACHE_INLINE F Sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
XCACHE_INLINE F Mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
XCACHE_INLINE F Div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
XCACHE_INLINE F Fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
XCACHE_INLINE F FmaNeg(F a, F b, F c) {  // a * b - c
  return {_mm512_fmsub_ps(a.v, b.v, c.v)};
}
// a > b ? a : b and a < b ? a : b
XCACHE_INLINE F Max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
XCACHE_INLINE F Min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
XCACHE_INLINE F Abs(F a) { return {_mm512_abs_ps(a.v)}; }
XCACHE_INLINE F Negate(F a) {
  return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))};
}
// x >= limit ? value : 0
XCACHE_INLINE F ZeroBelow(F x, float limit, F value) {
  return {_mm512_maskz_mov_ps(
      _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_GE_OQ), value.v)};
}
// The first n lanes of a (n may be negative or beyond 16), then `other`.
XCACHE_INLINE F KeepFirst(F a, int n, F other) {
  return {
      _mm512_mask_mov_ps(other.v, n <= 0 ? __mmask16{0} : FirstLanes(n), a.v)};
}
// p * 2^n, where the low bits of `shifted` are n.
XCACHE_INLINE F ScaleByExponent(F p, F shifted) {
  return {_mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(p.v),
                       _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23)))};
}

XCACHE_INLINE float SumLanes(F a) {
  const __m256 by8 = _mm256_add_ps(_mm512_castps512_ps256(a.v),
                                   _mm512_extractf32x8_ps(a.v, 1));
  const __m128 by4 =
      _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}
XCACHE_INLINE float MaxLane(F a) {
  const __m256 by8 = _mm256_max_ps(_mm512_castps512_ps256(a.v),
                                   _mm512_extractf32x8_ps(a.v, 1));
  const __m128 by4 =
      _mm_max_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_max_ss(by2, _mm_movehdup_ps(by2)));
}

// Eight values, each twice.
XCACHE_INLINE F LoadPairs(const float* p) {
  const __m512i index =
      _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return {
      _mm512_permutexvar_ps(index, _mm512_castps256_ps512(_mm256_loadu_ps(p)))};
}
XCACHE_INLINE F SwapPairs(F a) { return {_mm512_permute_ps(a.v, 0xb1)}; }
XCACHE_INLINE F NegateEven(F a) {
  return {_mm512_mask_xor_ps(a.v, 0x5555, a.v, _mm512_set1_ps(-0.0f))};
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_SIMD_AVX512_H_
