// The loops of machine_limits.h in AVX2.
#include <immintrin.h>

#include "tests/bench/machine_limits.h"

namespace xcache::bench {
namespace {

// Independent sums: more than the latency of an FMA (4) times the number of
// units (2) asks for, fewer than there are registers (16).
constexpr int kSums = 12;

}  // namespace

int64_t Fp32LoopAvx2(int64_t rounds, float* sink) {
  // Near 1, so that sums stay normal numbers.
  __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  __m256 sums[kSums];
  for (int i = 0; i < kSums; ++i)
    sums[i] = _mm256_set1_ps(1.0f + 0.1f * static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
    // The compiler cannot know what a and b are, nor move work out of the loop.
    asm volatile("" : "+x"(a), "+x"(b));
    for (int i = 0; i < kSums; ++i) sums[i] = _mm256_fmadd_ps(sums[i], a, b);
  }
  __m256 total = sums[0];
  for (int i = 1; i < kSums; ++i) total = _mm256_add_ps(total, sums[i]);
  *sink = _mm256_cvtss_f32(total);
  return rounds * kSums * 8;
}

int64_t Int8LoopAvx2(int64_t rounds, float* sink) {
  // AVX2 has no one instruction for it: pairs, then fours, then the sum.
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2);
  const __m256i ones = _mm256_set1_epi16(1);
  constexpr int kInt8Sums = 8;
  __m256i sums[kInt8Sums];
  for (int i = 0; i < kInt8Sums; ++i) sums[i] = _mm256_set1_epi32(i);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kInt8Sums; ++i) {
      // Anew for each sum: else one product would serve them all.
      asm volatile("" : "+x"(a), "+x"(b));
      const __m256i pairs = _mm256_maddubs_epi16(a, b);
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
    }
  }
  __m256i total = sums[0];
  for (int i = 1; i < kInt8Sums; ++i) total = _mm256_xor_si256(total, sums[i]);
  *sink = static_cast<float>(_mm256_extract_epi32(total, 0));
  return rounds * kInt8Sums * 32;
}

}  // namespace xcache::bench
