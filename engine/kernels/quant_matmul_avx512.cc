// The quantized product on AVX-512 with VNNI: vpdpbusd multiplies four codes of
// each of 16 columns with four activations at a time.
// The order of these includes matters.
// clang-format off
#include "engine/kernels/simd_avx512.h"
#include "engine/kernels/simd_math.h"
#include "engine/kernels/quant_matmul_simd.h"
// clang-format on

namespace xcache {
namespace {

// Four int8 in every 32-bit lane.
XCACHE_INLINE __m512i Broadcast4(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

XCACHE_INLINE __m512 LoadHalves(const uint8_t* p) {
  return _mm512_cvtph_ps(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Integer scales of 16 columns as floats.
template <bool kSigned>
XCACHE_INLINE __m512 LoadFactors(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(kSigned ? _mm512_cvtepi8_epi32(bytes)
                                    : _mm512_cvtepu8_epi32(bytes));
}

// 128 more than what the codes stand for.
XCACHE_INLINE __m512i Iq4Codes(Words codes) {
  const __m128i values = _mm_xor_si128(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(kIq4Values)),
      _mm_set1_epi8(static_cast<char>(0x80)));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values),
                             reinterpret_cast<__m512i>(codes));
}

template <QuantFormat kFormat>
struct Panel {
  using Shape = PanelShape<kFormat>;
  static constexpr int kBits = Shape::kBits;
  static constexpr bool kMin = Shape::kMin;

  // kRows activation rows times kPanels panels of equal shape. Two panels share
  // the loads of the activations, which would bind otherwise.
  template <int kRows, int kPanels>
  static void Dot(const uint8_t* a, int64_t a_stride, const QuantMatrix& w,
                  const uint8_t* const* panels, int64_t ahead,
                  float* const* out) {
    const int num_blocks = w.cols / kQuantBlock;
    // Of row 0's current block: activations, s, s_sum, sums.
    const uint8_t* row_s = a + w.cols;
    const uint8_t* row_scaled_sum = row_s + num_blocks * 4;
    const uint8_t* row_sum = row_s + num_blocks * 8;
    const uint8_t* codes[kPanels];
    const uint8_t* scales[kPanels];
    // Of block b of a group at 32 b: where 6 bits are kept, unpacked.
    const uint8_t* factors[kPanels];
    alignas(64) uint8_t unpacked[kPanels][kSuperBlocks * 32];
    __m512 acc[kPanels][kRows];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      codes[p] = panels[p];
      scales[p] =
          panels[p] + static_cast<int64_t>(num_blocks) * Shape::kCodeBytes;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[p][r] = _mm512_setzero_ps();
    }

    for (int first = 0; first < num_blocks; first += Shape::kGroup) {
      __m512 group_d[kPanels], group_m[kPanels];
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        group_d[p] = LoadHalves(scales[p]);
        if constexpr (kMin) group_m[p] = LoadHalves(scales[p] + 32);
        factors[p] = scales[p] + Shape::kHalfBytes;
        if constexpr (Shape::kSixBits) {
          UnpackFactors(factors[p], unpacked[p]);
          factors[p] = unpacked[p];
        }
      }
      for (int b = 0; b < Shape::kGroup; ++b) {
        if (ahead != 0) {
#pragma GCC unroll 2
          for (int p = 0; p < kPanels; ++p) {
            PrefetchBlock<kBits>(codes[p] + ahead, scales[p] + b * 32 + ahead);
          }
        }
        __m512i dot[kPanels][kRows];
        DotBlock<kRows, kPanels>(a, a_stride, codes, factors,
                                 kFormat.iq4 ? 128 : w.format.offset, row_sum,
                                 dot);
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; ++p) {
          __m512 d = group_d[p];
          if constexpr (Shape::kWhole) {
            d = _mm512_mul_ps(d, LoadFactors<!kMin>(factors[p]));
          }
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            const float* s =
                reinterpret_cast<const float*>(row_s + r * a_stride);
            acc[p][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[p][r]),
                                        _mm512_mul_ps(d, _mm512_set1_ps(*s)),
                                        acc[p][r]);
          }
          if constexpr (kMin) {
            __m512 m = group_m[p];
            __m512i mins;
            if constexpr (Shape::kHalves) {
              mins = _mm512_srli_epi16(HalfFactors(factors[p]), 4);
            } else if constexpr (Shape::kWhole) {
              m = _mm512_mul_ps(m, LoadFactors<false>(factors[p] + kPanelCols));
            }
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
              __m512 sum;
              if constexpr (Shape::kHalves) {
                const float* s =
                    reinterpret_cast<const float*>(row_s + r * a_stride);
                sum = _mm512_mul_ps(
                    _mm512_set1_ps(*s),
                    _mm512_cvtepi32_ps(_mm512_madd_epi16(
                        mins, Broadcast4(row_sum + r * a_stride))));
              } else {
                sum = _mm512_set1_ps(*reinterpret_cast<const float*>(
                    row_scaled_sum + r * a_stride));
              }
              acc[p][r] = _mm512_fmadd_ps(m, sum, acc[p][r]);
            }
          }
          codes[p] += Shape::kCodeBytes;
          if constexpr (Shape::kGroup > 1) factors[p] += Shape::kFactorBytes;
        }
        a += kQuantBlock;
        row_s += 4;
        row_scaled_sum += 4;
        row_sum += 4;
      }
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        scales[p] += Shape::kScaleBytes;
      }
    }
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        _mm512_storeu_ps(out[p] + r * kPanelCols, acc[p][r]);
      }
    }
  }

 private:
  // The integer scales of halves of blocks, 16 bits each: x, or, where there
  // are minima, x and y in a byte.
  static XCACHE_INLINE __m512i HalfFactors(const uint8_t* factors) {
    const __m256i bytes =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(factors));
    return kMin ? _mm512_cvtepu8_epi16(bytes) : _mm512_cvtepi8_epi16(bytes);
  }

  // The integer sums of one block: codes less their offset times activations.
  template <int kRows, int kPanels>
  static XCACHE_INLINE void DotBlock(const uint8_t* a, int64_t a_stride,
                                     const uint8_t* const* codes,
                                     const uint8_t* const* factors, int offset,
                                     const uint8_t* row_sum,
                                     __m512i (&dot)[kPanels][kRows]) {
    // With few sums at a time, a second set hides vpdpbusd's latency. Where a
    // block's halves have scales of their own, each has a set.
    constexpr bool kTwoSets = kRows * kPanels <= 4 || Shape::kHalves;
    constexpr bool kHighNibbles = kBits == 4 && !kFormat.iq4 && kTwoSets;
    __m512i other[kPanels][kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int sums[2] = {};
      if constexpr (Shape::kOffset) LoadSums(row_sum + r * a_stride, sums);
      if constexpr (!Shape::kHalves) sums[0] += std::exchange(sums[1], 0);
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        dot[p][r] = _mm512_set1_epi32(-offset * sums[0]);
        other[p][r] = _mm512_set1_epi32(-offset * sums[1]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {  // four of the block's elements of K
      __m512i chunk[kPanels];
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        if (kHighNibbles && i % 2 == 1) {  // 16 times the code
          chunk[p] = reinterpret_cast<__m512i>(
              LoadWords(codes[p] + i / 2 * 64) & 0xf0f0);
        } else if (kFormat.iq4) {
          chunk[p] = Iq4Codes(CodesOf<kBits>(codes[p], i));
        } else {
          chunk[p] = reinterpret_cast<__m512i>(CodesOf<kBits>(codes[p], i));
        }
      }
      const bool in_other = kTwoSets && (Shape::kHalves ? i >= 4 : i % 2 == 1);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512i x = Broadcast4(a + r * a_stride + i * 4);
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; ++p) {
          __m512i& sum = in_other ? other[p][r] : dot[p][r];
          sum = _mm512_dpbusd_epi32(sum, chunk[p], x);
        }
      }
    }
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      __m512i scale0, scale1;
      if constexpr (Shape::kHalves) {
        __m512i pairs = HalfFactors(factors[p]);
        if constexpr (kMin)
          pairs = _mm512_and_si512(pairs, _mm512_set1_epi16(15));
        scale0 = _mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 16);
        scale1 = _mm512_srai_epi32(pairs, 16);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        if constexpr (Shape::kHalves) {
          dot[p][r] = _mm512_add_epi32(_mm512_mullo_epi32(dot[p][r], scale0),
                                       _mm512_mullo_epi32(other[p][r], scale1));
        } else if constexpr (kTwoSets) {
          if constexpr (kHighNibbles) {
            other[p][r] = _mm512_srai_epi32(other[p][r], 4);
          }
          dot[p][r] = _mm512_add_epi32(dot[p][r], other[p][r]);
        }
      }
    }
  }
};

}  // namespace

void AddQuantMatmulAvx512(Kernels* table) { SetQuantMatmul<Panel>(table); }

}  // namespace xcache
