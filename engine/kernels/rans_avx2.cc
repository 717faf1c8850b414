// rans.h in AVX2: eight lanes in a register.
#include <immintrin.h>

#include "engine/kernels/codec_kernels.h"

namespace xcache {
namespace {

constexpr int kVectors = kRansLanes / 8;

// For each mask of eight lanes, a nibble a lane: which of the next words it
// takes. Lanes that take none have 0.
struct Expansions {
  uint32_t nibbles[256];
};
constexpr Expansions MakeExpansions() {
  Expansions out{};
  for (uint32_t mask = 0; mask < 256; ++mask) {
    uint32_t next = 0;
    for (uint32_t lane = 0; lane < 8; ++lane) {
      if ((mask >> lane & 1u) != 0) out.nibbles[mask] |= next++ << (4 * lane);
    }
  }
  return out;
}
constexpr Expansions kExpansions = MakeExpansions();

__m256i Load(const uint32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

const uint8_t* RansDecode(const RansDecodeArgs& args) {
  const __m256i low = _mm256_set1_epi32(static_cast<int>(kRansTotal - 1));
  const __m256i one = _mm256_set1_epi32(1);
  const __m256i nibble_at = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  __m256i states[kVectors], classes[kVectors], offsets[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    states[v] = Load(args.states + 8 * v);
    classes[v] = Load(args.classes + 8 * v);
    offsets[v] = Load(args.offsets + 8 * v);
  }
  const auto* slots = reinterpret_cast<const int*>(args.slots);
  const uint8_t* words = args.words;
  int16_t* out = args.symbols;
  for (int round = 0; round < args.num_rounds; ++round) {
    const __m256i tables = _mm256_cvtepu8_epi32(_mm_loadl_epi64(
        reinterpret_cast<const __m128i*>(args.tables + round * kRansClasses)));
    for (int v = 0; v < kVectors; v += 2) {
      __m256i symbols[2];
      for (int half = 0; half < 2; ++half) {
        __m256i x = states[v + half];
        const __m256i table = _mm256_add_epi32(
            _mm256_permutevar8x32_epi32(tables, classes[v + half]),
            offsets[v + half]);
        const __m256i slot = _mm256_i32gather_epi32(
            slots,
            _mm256_or_si256(_mm256_slli_epi32(table, kRansBits),
                            _mm256_and_si256(x, low)),
            4);
        const __m256i frequency = _mm256_add_epi32(
            _mm256_and_si256(_mm256_srli_epi32(slot, 12), low), one);
        x = _mm256_add_epi32(
            _mm256_mullo_epi32(frequency, _mm256_srli_epi32(x, kRansBits)),
            _mm256_and_si256(slot, low));
        symbols[half] = _mm256_srai_epi32(slot, 24);
        // Below 2^16: the upper half is zero.
        const __m256i takes = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16),
                                                 _mm256_setzero_si256());
        const auto mask = static_cast<uint32_t>(
            _mm256_movemask_ps(_mm256_castsi256_ps(takes)));
        const __m256i next = _mm256_cvtepu16_epi32(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
        // vpermd reads three bits of each index.
        const __m256i index = _mm256_srlv_epi32(
            _mm256_set1_epi32(static_cast<int>(kExpansions.nibbles[mask])),
            nibble_at);
        const __m256i taken = _mm256_permutevar8x32_epi32(next, index);
        states[v + half] = _mm256_blendv_epi8(
            x, _mm256_or_si256(_mm256_slli_epi32(x, 16), taken), takes);
        words += 2 * __builtin_popcount(mask);
      }
      // Packing works on halves of registers; the permutation undoes that.
      _mm256_storeu_si256(
          reinterpret_cast<__m256i*>(out),
          _mm256_permute4x64_epi64(_mm256_packs_epi32(symbols[0], symbols[1]),
                                   0xd8));
      out += 16;
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(args.states + 8 * v),
                        states[v]);
  }
  return words;
}

}  // namespace

void AddRansAvx2(CodecKernels* table) { table->rans_decode = RansDecode; }

}  // namespace xcache
