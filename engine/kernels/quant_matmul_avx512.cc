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

template <bool kF32>
XCACHE_INLINE __m512 LoadScales(const uint8_t* p) {
  if constexpr (kF32) {
    return _mm512_loadu_ps(reinterpret_cast<const float*>(p));
  } else {
    return _mm512_cvtph_ps(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
}

template <bool kU8, bool kMin, bool kF32>
struct Panel {
  using Shape = PanelShape<kU8, kMin, kF32>;

  // kRows activation rows times kPanels panels of equal shape. Two panels share
  // the loads of the activations, which would bind otherwise.
  template <int kRows, int kPanels>
  static void Dot(const uint8_t* a, int64_t a_stride, const QuantMatrix& w,
                  const uint8_t* const* panels, float* const* out) {
    const int num_blocks = w.cols / kQuantBlock;
    // Of row 0's current block: activations, s, s_sum, sum.
    const uint8_t* row_s = a + w.cols;
    const uint8_t* row_scaled_sum = row_s + num_blocks * 4;
    const uint8_t* row_sum = row_s + num_blocks * 8;
    const uint8_t* codes[kPanels];
    const uint8_t* scales[kPanels];
    __m512 acc[kPanels][kRows];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      codes[p] = panels[p];
      scales[p] =
          panels[p] + static_cast<int64_t>(num_blocks) * Shape::kCodeBytes;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[p][r] = _mm512_setzero_ps();
    }

    for (int b = 0; b < num_blocks; ++b) {
      __m512i dot[kPanels][kRows];
      DotBlock<kRows, kPanels>(a, a_stride, codes, dot);
      if constexpr (Shape::kOffset) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          int32_t sum;
          __builtin_memcpy(&sum, row_sum + r * a_stride, 4);
          const __m512i less = _mm512_set1_epi32(-w.offset * sum);
#pragma GCC unroll 2
          for (int p = 0; p < kPanels; ++p) {
            dot[p][r] = _mm512_add_epi32(dot[p][r], less);
          }
        }
      }
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        const __m512 d = LoadScales<kF32>(scales[p]);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const float* s = reinterpret_cast<const float*>(row_s + r * a_stride);
          acc[p][r] =
              _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[p][r]),
                              _mm512_mul_ps(d, _mm512_set1_ps(*s)), acc[p][r]);
        }
        if constexpr (kMin) {
          const __m512 m = LoadScales<kF32>(scales[p] + Shape::kVecBytes);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            const float* s =
                reinterpret_cast<const float*>(row_scaled_sum + r * a_stride);
            acc[p][r] = _mm512_fmadd_ps(m, _mm512_set1_ps(*s), acc[p][r]);
          }
        }
        codes[p] += Shape::kCodeBytes;
        scales[p] += Shape::kScaleBytes;
      }
      a += kQuantBlock;
      row_s += 4;
      row_scaled_sum += 4;
      row_sum += 4;
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
  // The integer products of one block, codes times activations.
  template <int kRows, int kPanels>
  static XCACHE_INLINE void DotBlock(const uint8_t* a, int64_t a_stride,
                                     const uint8_t* const* codes,
                                     __m512i (&dot)[kPanels][kRows]) {
    // With few sums at a time, a second set hides vpdpbusd's latency.
    constexpr bool kTwoSets = kRows * kPanels <= 4;
    __m512i other[kPanels][kRows];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        dot[p][r] = other[p][r] = _mm512_setzero_si512();
      }
    }
    const __m512i low_nibbles = _mm512_set1_epi8(15);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {  // four of the block's elements of K
      __m512i chunk[kPanels];
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        if constexpr (kU8) {
          chunk[p] = _mm512_loadu_si512(codes[p] + i * 64);
        } else {
          const __m512i both = _mm512_loadu_si512(codes[p] + i / 2 * 64);
          if (i % 2 == 0) {
            chunk[p] = _mm512_and_si512(both, low_nibbles);
          } else if (kTwoSets) {  // 16 times the code
            chunk[p] = _mm512_andnot_si512(low_nibbles, both);
          } else {
            chunk[p] =
                _mm512_and_si512(_mm512_srli_epi16(both, 4), low_nibbles);
          }
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512i x = Broadcast4(a + r * a_stride + i * 4);
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; ++p) {
          __m512i& sum = kTwoSets && i % 2 == 1 ? other[p][r] : dot[p][r];
          sum = _mm512_dpbusd_epi32(sum, chunk[p], x);
        }
      }
    }
    if constexpr (kTwoSets) {
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          if constexpr (!kU8) other[p][r] = _mm512_srai_epi32(other[p][r], 4);
          dot[p][r] = _mm512_add_epi32(dot[p][r], other[p][r]);
        }
      }
    }
  }
};

}  // namespace

void AddQuantMatmulAvx512(Kernels* table) { SetQuantMatmul<Panel>(table); }

}  // namespace xcache
