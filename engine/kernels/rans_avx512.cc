// rans.h in AVX-512: sixteen lanes in a register.
#include <immintrin.h>

#include "engine/kernels/codec_kernels.h"

namespace xcache {
namespace {

constexpr int kVectors = kRansLanes / 16;

const uint8_t* RansDecode(const RansDecodeArgs& args) {
  const __m512i low = _mm512_set1_epi32(static_cast<int>(kRansTotal - 1));
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i lowest = _mm512_set1_epi32(static_cast<int>(kRansLowest));
  __m512i states[kVectors], classes[kVectors], offsets[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    states[v] = _mm512_loadu_si512(args.states + 16 * v);
    classes[v] = _mm512_loadu_si512(args.classes + 16 * v);
    offsets[v] = _mm512_loadu_si512(args.offsets + 16 * v);
  }
  const uint8_t* words = args.words;
  int16_t* out = args.symbols;
  for (int round = 0; round < args.num_rounds; ++round) {
    const __m512i tables = _mm512_castsi256_si512(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(
            args.tables + round * kRansClasses))));
    for (int v = 0; v < kVectors; ++v) {
      __m512i x = states[v];
      const __m512i table = _mm512_add_epi32(
          _mm512_permutexvar_epi32(classes[v], tables), offsets[v]);
      const __m512i slot = _mm512_i32gather_epi32(
          _mm512_or_si512(_mm512_slli_epi32(table, kRansBits),
                          _mm512_and_si512(x, low)),
          args.slots, 4);
      const __m512i frequency = _mm512_add_epi32(
          _mm512_and_si512(_mm512_srli_epi32(slot, 12), low), one);
      x = _mm512_add_epi32(
          _mm512_mullo_epi32(frequency, _mm512_srli_epi32(x, kRansBits)),
          _mm512_and_si512(slot, low));
      const __mmask16 takes = _mm512_cmplt_epu32_mask(x, lowest);
      const __m512i next = _mm512_cvtepu16_epi32(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
      const __m512i taken = _mm512_maskz_expand_epi32(takes, next);
      states[v] =
          _mm512_mask_or_epi32(x, takes, _mm512_slli_epi32(x, 16), taken);
      words += 2 * __builtin_popcount(takes);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                          _mm512_cvtepi32_epi16(_mm512_srai_epi32(slot, 24)));
      out += 16;
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    _mm512_storeu_si512(args.states + 16 * v, states[v]);
  }
  return words;
}

}  // namespace

void AddRansAvx512(CodecKernels* table) { table->rans_decode = RansDecode; }

}  // namespace xcache
