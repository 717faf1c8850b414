// int_matmul_simd.h on AVX2: vpmaddwd multiplies a pair of each of 8 columns,
// its one overflow, of four times -2^15, wraps as all sums do; vpmaddubsw
// multiplies four, of which one factor has to be positive: two products of at
// most 127 * 127 are below 2^15.
// The order of these includes matters.
// clang-format off
#include "engine/kernels/simd_avx2.h"
// clang-format on

namespace xcache {
namespace {

struct I {
  __m256i lo, hi;
};

XCACHE_INLINE I LoadInts(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
XCACHE_INLINE I ZeroInts() {
  return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
XCACHE_INLINE F ToFloats(I a) {
  return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}

// What sums start from, by the sums of their columns of B.
XCACHE_INLINE I Start8(const int32_t* /*col_sums*/) { return ZeroInts(); }
XCACHE_INLINE I Set16(int32_t pair) {
  return {_mm256_set1_epi32(pair), _mm256_set1_epi32(pair)};
}
XCACHE_INLINE I Set8(int32_t four) { return Set16(four); }

XCACHE_INLINE I MultiplyAdd16(I sum, I a, I b) {
  return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(a.lo, b.lo)),
          _mm256_add_epi32(sum.hi, _mm256_madd_epi16(a.hi, b.hi))};
}
XCACHE_INLINE __m256i MultiplyFour(__m256i a, __m256i b) {
  return _mm256_madd_epi16(
      _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a)),
      _mm256_set1_epi16(1));
}
XCACHE_INLINE I MultiplyAdd8(I sum, I a, I b) {
  return {_mm256_add_epi32(sum.lo, MultiplyFour(a.lo, b.lo)),
          _mm256_add_epi32(sum.hi, MultiplyFour(a.hi, b.hi))};
}

}  // namespace
}  // namespace xcache

#include "engine/kernels/int_matmul_simd.h"

namespace xcache {

void AddIntMatmulAvx2(CodecKernels* table) { SetIntMatmul(table); }

}  // namespace xcache
