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

template <bool kU8, bool kMin, bool kF32, bool kOffset>
struct Panel {
  static constexpr int kCodeBytes = kU8 ? 512 : 256;
  static constexpr int kVecBytes = kF32 ? 64 : 32;
  static constexpr int kScaleBytes = kVecBytes * (kMin ? 2 : 1);

  template <int kRows>
  static void Dot(const uint8_t* a, int64_t a_stride, const QuantMatrix& w,
                  const uint8_t* panel, float* out) {
    const int num_blocks = w.cols / kQuantBlock;
    const uint8_t* codes = panel;
    const uint8_t* scales =
        panel + static_cast<int64_t>(num_blocks) * kCodeBytes;
    // Of row 0's current block: activations, s, s_sum, sum.
    const uint8_t* row_s = a + w.cols;
    const uint8_t* row_scaled_sum = row_s + num_blocks * 4;
    const uint8_t* row_sum = row_s + num_blocks * 8;
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512 acc[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) acc[r] = _mm512_setzero_ps();

    for (int b = 0; b < num_blocks; ++b) {
      // With few rows a second set of sums hides vpdpbusd's latency.
      constexpr int kSets = kRows <= 2 ? 2 : 1;
      __m512i dot[kSets][kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        if constexpr (kOffset) {
          int32_t sum;
          __builtin_memcpy(&sum, row_sum + r * a_stride, 4);
          dot[0][r] = _mm512_set1_epi32(-w.offset * sum);
        } else {
          dot[0][r] = _mm512_setzero_si512();
        }
        if constexpr (kSets == 2) dot[1][r] = _mm512_setzero_si512();
      }
#pragma GCC unroll 8
      for (int i = 0; i < kCodeBytes / 64; ++i) {
        const __m512i chunk = _mm512_loadu_si512(codes + i * 64);
        if constexpr (kU8) {
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            __m512i& sum = dot[i % kSets][r];
            sum = _mm512_dpbusd_epi32(sum, chunk,
                                      Broadcast4(a + r * a_stride + i * 4));
          }
        } else {
          const __m512i low = _mm512_and_si512(chunk, nibble);
          const __m512i high =
              _mm512_and_si512(_mm512_srli_epi16(chunk, 4), nibble);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            dot[0][r] = _mm512_dpbusd_epi32(
                dot[0][r], low, Broadcast4(a + r * a_stride + i * 8));
          }
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            __m512i& sum = dot[kSets - 1][r];
            sum = _mm512_dpbusd_epi32(sum, high,
                                      Broadcast4(a + r * a_stride + i * 8 + 4));
          }
        }
      }
      const __m512 d = LoadScales<kF32>(scales);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        __m512i sum = dot[0][r];
        if constexpr (kSets == 2) sum = _mm512_add_epi32(sum, dot[1][r]);
        const float* s = reinterpret_cast<const float*>(row_s + r * a_stride);
        acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum),
                                 _mm512_mul_ps(d, _mm512_set1_ps(*s)), acc[r]);
      }
      if constexpr (kMin) {
        const __m512 m = LoadScales<kF32>(scales + kVecBytes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const float* s =
              reinterpret_cast<const float*>(row_scaled_sum + r * a_stride);
          acc[r] = _mm512_fmadd_ps(m, _mm512_set1_ps(*s), acc[r]);
        }
      }
      a += kQuantBlock;
      row_s += 4;
      row_scaled_sum += 4;
      row_sum += 4;
      codes += kCodeBytes;
      scales += kScaleBytes;
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      _mm512_storeu_ps(out + r * kPanelCols, acc[r]);
    }
  }
};

}  // namespace

void AddQuantMatmulAvx512(Kernels* table) { SetQuantMatmul<Panel>(table); }

}  // namespace xcache
