// The loops of machine_limits.h in AVX-512 with VNNI.
#include <immintrin.h>

#include "tests/bench/machine_limits.h"

namespace xcache::bench {
namespace {

// Independent sums: more than the latency of an FMA or a dot product (4 to 5)
// times the number of units (2) asks for.
constexpr int kSums = 16;

}  // namespace

int64_t Fp32LoopAvx512(int64_t rounds, float* sink) {
  __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  __m512 sums[kSums];
  for (int i = 0; i < kSums; ++i)
    sums[i] = _mm512_set1_ps(1.0f + 0.1f * static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
    // The compiler cannot know what a and b are, nor move work out of the loop.
    asm volatile("" : "+v"(a), "+v"(b));
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_fmadd_ps(sums[i], a, b);
  }
  __m512 total = sums[0];
  for (int i = 1; i < kSums; ++i) total = _mm512_add_ps(total, sums[i]);
  *sink = _mm512_cvtss_f32(total);
  return rounds * kSums * 16;
}

int64_t Int8LoopAvx512(int64_t rounds, float* sink) {
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
  __m512i sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_epi32(i);
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(a), "+v"(b));
    for (int i = 0; i < kSums; ++i)
      sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
  }
  __m512i total = sums[0];
  for (int i = 1; i < kSums; ++i) total = _mm512_xor_si512(total, sums[i]);
  *sink = static_cast<float>(_mm_cvtsi128_si32(_mm512_castsi512_si128(total)));
  return rounds * kSums * 64;
}

}  // namespace xcache::bench
