// int_matmul_simd.h with VNNI: vpdpwssd multiplies a pair of each of 16 columns
// and adds both products to the sum, vpdpbusd four, of which one factor has no
// sign: A's has 128 added to it, which the sum starts without.
// The order of these includes matters.
// clang-format off
#include "engine/kernels/simd_avx512.h"
// clang-format on

namespace xcache {
namespace {

struct I {
  __m512i v;
};

XCACHE_INLINE I LoadInts(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
XCACHE_INLINE I ZeroInts() { return {_mm512_setzero_si512()}; }
XCACHE_INLINE F ToFloats(I a) { return {_mm512_cvtepi32_ps(a.v)}; }

// What sums start from, by the sums of their columns of B.
XCACHE_INLINE I Start8(const int32_t* col_sums) {
  return {_mm512_sub_epi32(_mm512_setzero_si512(),
                           _mm512_slli_epi32(_mm512_loadu_si512(col_sums), 7))};
}
XCACHE_INLINE I Set16(int32_t pair) { return {_mm512_set1_epi32(pair)}; }
XCACHE_INLINE I Set8(int32_t four) {
  return {_mm512_xor_si512(_mm512_set1_epi32(four), _mm512_set1_epi8(-128))};
}

// By hand: GCC 12 copies each sum before and after the instruction, which takes
// as long again.
XCACHE_INLINE I MultiplyAdd16(I sum, I a, I b) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
  return sum;
}
XCACHE_INLINE I MultiplyAdd8(I sum, I a, I b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
  return sum;
}

}  // namespace
}  // namespace xcache

#include "engine/kernels/int_matmul_simd.h"

namespace xcache {

void AddIntMatmulAvx512(CodecKernels* table) { SetIntMatmul(table); }

}  // namespace xcache
