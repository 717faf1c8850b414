// The quantized product on AVX2: vpmaddubsw multiplies unsigned with signed
// bytes and adds pairs in int16, saturating; the operands are such that it
// never saturates, so the sums are exact.
// The order of these includes matters.
// clang-format off
#include "engine/kernels/simd_avx2.h"
#include "engine/kernels/simd_math.h"
#include "engine/kernels/quant_matmul_simd.h"
// clang-format on

namespace xcache {
namespace {

// Four int8 in every 32-bit lane.
XCACHE_INLINE __m256i Broadcast4(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}

template <bool kF32>
XCACHE_INLINE __m256 LoadScales(const uint8_t* p) {
  if constexpr (kF32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  } else {
    return _mm256_cvtph_ps(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
}

template <bool kU8, bool kMin, bool kF32>
struct Panel {
  using Shape = PanelShape<kU8, kMin, kF32>;

  // The block's integer products of kRows rows with 8 columns, of 32 bytes in
  // each 64-byte chunk at `codes`.
  template <int kRows>
  static XCACHE_INLINE void DotBlock(const uint8_t* a, int64_t a_stride,
                                     const uint8_t* codes,
                                     __m256i (&dot)[kRows]) {
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) dot[r] = _mm256_setzero_si256();
    if constexpr (kU8) {
      // Codes less 128 are signed: |w| <= 128 times sign(w) a in [-127, 127],
      // two of them: at most 32512. The caller adds 128 sum(a).
      const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const __m256i w = _mm256_xor_si256(
            flip, _mm256_loadu_si256(
                      reinterpret_cast<const __m256i*>(codes + i * 64)));
        const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const __m256i x = Broadcast4(a + r * a_stride + i * 4);
          const __m256i pairs =
              _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
          dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(pairs, ones));
        }
      }
    } else {
      // 16 products of at most 15 * 127 in each int16: 30480.
      const __m256i nibble = _mm256_set1_epi8(15);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m256i chunk = _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(codes + i * 64));
        const __m256i low = _mm256_and_si256(chunk, nibble);
        const __m256i high =
            _mm256_and_si256(_mm256_srli_epi16(chunk, 4), nibble);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const uint8_t* x = a + r * a_stride + i * 8;
          dot[r] = _mm256_add_epi16(dot[r],
                                    _mm256_maddubs_epi16(low, Broadcast4(x)));
          dot[r] = _mm256_add_epi16(
              dot[r], _mm256_maddubs_epi16(high, Broadcast4(x + 4)));
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        dot[r] = _mm256_madd_epi16(dot[r], ones);
      }
    }
  }

  // kRows rows times columns 8 * half .. 8 * half + 7.
  template <int kRows>
  static XCACHE_INLINE void DotHalf(const uint8_t* a, int64_t a_stride,
                                    const QuantMatrix& w, const uint8_t* panel,
                                    int half, float* out) {
    const int num_blocks = w.cols / kQuantBlock;
    const uint8_t* codes = panel + half * 32;
    const uint8_t* scales =
        panel + static_cast<int64_t>(num_blocks) * Shape::kCodeBytes +
        half * (Shape::kVecBytes / 2);
    const uint8_t* row_s = a + w.cols;
    const int64_t to_scaled_sum = num_blocks * 4;
    const int64_t to_sum = num_blocks * 8;
    const int sum_factor = (kU8 ? 128 : 0) - (Shape::kOffset ? w.offset : 0);
    __m256 acc[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) acc[r] = _mm256_setzero_ps();
    for (int b = 0; b < num_blocks; ++b) {
      __m256i dot[kRows];
      DotBlock<kRows>(a, a_stride, codes, dot);
      const __m256 d = LoadScales<kF32>(scales);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        if constexpr (kU8 || Shape::kOffset) {
          int32_t sum;
          __builtin_memcpy(&sum, row_s + r * a_stride + to_sum, 4);
          dot[r] =
              _mm256_add_epi32(dot[r], _mm256_set1_epi32(sum_factor * sum));
        }
        const float* s = reinterpret_cast<const float*>(row_s + r * a_stride);
        acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r]),
                                 _mm256_mul_ps(d, _mm256_set1_ps(*s)), acc[r]);
      }
      if constexpr (kMin) {
        const __m256 m = LoadScales<kF32>(scales + Shape::kVecBytes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const float* s = reinterpret_cast<const float*>(row_s + r * a_stride +
                                                          to_scaled_sum);
          acc[r] = _mm256_fmadd_ps(m, _mm256_set1_ps(*s), acc[r]);
        }
      }
      a += kQuantBlock;
      row_s += 4;
      codes += Shape::kCodeBytes;
      scales += Shape::kScaleBytes;
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      _mm256_storeu_ps(out + r * kPanelCols + half * 8, acc[r]);
    }
  }

  template <int kRows, int kPanels>
  static void Dot(const uint8_t* a, int64_t a_stride, const QuantMatrix& w,
                  const uint8_t* const* panels, float* const* out) {
    for (int p = 0; p < kPanels; ++p) {
      DotHalf<kRows>(a, a_stride, w, panels[p], 0, out[p]);
      DotHalf<kRows>(a, a_stride, w, panels[p], 1, out[p]);
    }
  }
};

}  // namespace

void AddQuantMatmulAvx2(Kernels* table) { SetQuantMatmul<Panel>(table); }

}  // namespace xcache
