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

XCACHE_INLINE __m256 LoadHalves(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// Integer scales of 8 columns as floats.
XCACHE_INLINE __m256 LoadFactors(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

template <int kBits, bool kMin, bool kK>
struct Panel {
  using Shape = PanelShape<kBits, kMin, kK>;

  // Of a block of 8-bit codes of 8 columns, 32 bytes in each 64-byte chunk at
  // `codes`, less 128 each, with kRows rows.
  template <int kRows>
  static XCACHE_INLINE void DotBytes(const uint8_t* a, int64_t a_stride,
                                     const uint8_t* codes,
                                     __m256i (&dot)[kRows]) {
    // Codes less 128 are signed: |w| <= 128 times sign(w) a in [-127, 127],
    // two of them: at most 32512.
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m256i w = _mm256_xor_si256(
          flip, reinterpret_cast<__m256i>(CodesOf<8>(codes, i)));
      const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m256i x = Broadcast4(a + r * a_stride + i * 4);
        const __m256i pairs =
            _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
        dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(pairs, ones));
      }
    }
  }

  // The same of smaller codes, as they are; in two halves of a block each
  // multiplied by its `scale`, twice in every 32-bit lane.
  template <int kRows>
  static XCACHE_INLINE void DotBits(const uint8_t* a, int64_t a_stride,
                                    const uint8_t* codes,
                                    const __m256i (&scale)[2],
                                    __m256i (&dot)[kRows]) {
    // So many chunks add up in an int16 at most: 2 products each, of at most
    // 15 * 127, 31 * 127, 63 * 127: together 30480, 31496, 32004.
    constexpr int kChunks = kBits == 4 ? 8 : kBits == 5 ? 4 : 2;
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += kChunks) {
      __m256i words[kRows];
#pragma GCC unroll 8
      for (int j = i; j < i + kChunks; ++j) {
        const auto chunk = reinterpret_cast<__m256i>(CodesOf<kBits>(codes, j));
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const __m256i pairs =
              _mm256_maddubs_epi16(chunk, Broadcast4(a + r * a_stride + j * 4));
          words[r] = j == i ? pairs : _mm256_add_epi16(words[r], pairs);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        dot[r] =
            _mm256_add_epi32(dot[r], _mm256_madd_epi16(words[r], scale[i / 4]));
      }
    }
  }

  // The integer sums of one block: codes less their offset times activations.
  template <int kRows>
  static XCACHE_INLINE void DotBlock(const uint8_t* a, int64_t a_stride,
                                     const uint8_t* codes,
                                     const uint8_t* factors, int offset,
                                     const uint8_t* row_sum,
                                     __m256i (&dot)[kRows]) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) dot[r] = _mm256_setzero_si256();
    if constexpr (Shape::kHalves) {
      const __m256i pairs = _mm256_cvtepi8_epi16(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(factors)));
      const __m256i scale[2] = {
          _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(pairs, 0xa0), 0xa0),
          _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(pairs, 0xf5), 0xf5)};
      DotBits<kRows>(a, a_stride, codes, scale, dot);
      const __m256i less = _mm256_mullo_epi16(
          pairs, _mm256_set1_epi16(static_cast<int16_t>(-offset)));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        int32_t sums;  // both of the block's
        __builtin_memcpy(&sums, row_sum + r * a_stride, 4);
        dot[r] = _mm256_add_epi32(
            dot[r], _mm256_madd_epi16(less, _mm256_set1_epi32(sums)));
      }
      return;
    }
    if constexpr (kBits == 8) {
      DotBytes<kRows>(a, a_stride, codes, dot);
      offset -= 128;
    } else {
      const __m256i ones = _mm256_set1_epi16(1);
      DotBits<kRows>(a, a_stride, codes, {ones, ones}, dot);
    }
    if constexpr (Shape::kOffset) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        int sums[2];
        LoadSums(row_sum + r * a_stride, sums);
        dot[r] = _mm256_add_epi32(
            dot[r], _mm256_set1_epi32(-offset * (sums[0] + sums[1])));
      }
    }
  }

  // kRows rows times columns 8 * half .. 8 * half + 7.
  template <int kRows>
  static XCACHE_INLINE void DotHalf(const uint8_t* a, int64_t a_stride,
                                    const QuantMatrix& w, const uint8_t* panel,
                                    int half, int64_t ahead, float* out) {
    const int num_blocks = w.cols / kQuantBlock;
    const uint8_t* codes = panel + half * 32;
    const uint8_t* scales =
        panel + static_cast<int64_t>(num_blocks) * Shape::kCodeBytes;
    const uint8_t* row_s = a + w.cols;
    const int64_t to_scaled_sum = num_blocks * 4;
    const int64_t to_sum = num_blocks * 8;
    __m256 acc[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) acc[r] = _mm256_setzero_ps();
    for (int first = 0; first < num_blocks; first += Shape::kGroup) {
      const __m256 group_d = LoadHalves(scales + half * 16);
      __m256 group_m;
      if constexpr (kMin) group_m = LoadHalves(scales + 32 + half * 16);
      const uint8_t* factors = scales + Shape::kHalfBytes;
      alignas(32) uint8_t unpacked[kSuperBlocks * 32];
      if constexpr (kMin && kK) {
        UnpackFactors(factors, unpacked);
        factors = unpacked;
      }
      for (int b = 0; b < Shape::kGroup; ++b) {
        if (ahead != 0) {
          PrefetchBlock<kBits>(codes + ahead, scales + b * 32 + ahead);
        }
        __m256i dot[kRows];
        DotBlock<kRows>(a, a_stride, codes, factors + half * 16,
                        w.format.offset, row_s + to_sum, dot);
        __m256 d = group_d;
        if constexpr (kMin && kK) {
          d = _mm256_mul_ps(d, LoadFactors(factors + half * 8));
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const float* s = reinterpret_cast<const float*>(row_s + r * a_stride);
          acc[r] =
              _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r]),
                              _mm256_mul_ps(d, _mm256_set1_ps(*s)), acc[r]);
        }
        if constexpr (kMin) {
          __m256 m = group_m;
          if constexpr (kK) {
            m = _mm256_mul_ps(m, LoadFactors(factors + kPanelCols + half * 8));
          }
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
            const float* s = reinterpret_cast<const float*>(
                row_s + r * a_stride + to_scaled_sum);
            acc[r] = _mm256_fmadd_ps(m, _mm256_set1_ps(*s), acc[r]);
          }
        }
        a += kQuantBlock;
        row_s += 4;
        codes += Shape::kCodeBytes;
        if constexpr (kK) factors += 32;
      }
      scales += Shape::kHalfBytes + Shape::kFactorBytes;
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      _mm256_storeu_ps(out + r * kPanelCols + half * 8, acc[r]);
    }
  }

  template <int kRows, int kPanels>
  static void Dot(const uint8_t* a, int64_t a_stride, const QuantMatrix& w,
                  const uint8_t* const* panels, int64_t ahead,
                  float* const* out) {
    for (int p = 0; p < kPanels; ++p) {
      DotHalf<kRows>(a, a_stride, w, panels[p], 0, ahead, out[p]);
      DotHalf<kRows>(a, a_stride, w, panels[p], 1, 0, out[p]);
    }
  }
};

}  // namespace

void AddQuantMatmulAvx2(Kernels* table) { SetQuantMatmul<Panel>(table); }

}  // namespace xcache
