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
template <bool kSigned>
XCACHE_INLINE __m256 LoadFactors(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(kSigned ? _mm256_cvtepi8_epi32(bytes)
                                    : _mm256_cvtepu8_epi32(bytes));
}

template <QuantFormat kFormat>
struct Panel {
  using Shape = PanelShape<kFormat>;
  static constexpr int kBits = Shape::kBits;
  static constexpr bool kMin = Shape::kMin;

  // Codes as signed bytes: those of 8 bits less 128, or what others stand for.
  static XCACHE_INLINE __m256i SignedCodes(const uint8_t* codes, int i) {
    const auto bytes = reinterpret_cast<__m256i>(CodesOf<kBits>(codes, i));
    if constexpr (kFormat.iq4) {
      return _mm256_shuffle_epi8(
          _mm256_broadcastsi128_si256(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(kIq4Values))),
          bytes);
    }
    return _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80)));
  }

  // Of a block of such codes of 8 columns, 32 bytes in each 64-byte chunk at
  // `codes`, with kRows rows.
  template <int kRows>
  static XCACHE_INLINE void DotBytes(const uint8_t* a, int64_t a_stride,
                                     const uint8_t* codes,
                                     __m256i (&dot)[kRows]) {
    // |w| <= 128 times sign(w) a in [-127, 127],
    // two of them: at most 32512.
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m256i w = SignedCodes(codes, i);
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
    // 15 * 127, 31 * 127, 63 * 127: together 30480, 31496, 32004. Those of 2
    // and 3 bits have scales of halves.
    constexpr int kChunks = kBits == 4 ? 8 : kBits == 6 ? 2 : 4;
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

  // The integer scales of halves of blocks, 16 bits each: x, or, where there
  // are minima, x and y in a byte.
  static XCACHE_INLINE __m256i HalfFactors(const uint8_t* factors) {
    const __m128i bytes =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(factors));
    return kMin ? _mm256_cvtepu8_epi16(bytes) : _mm256_cvtepi8_epi16(bytes);
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
      __m256i pairs = HalfFactors(factors);
      if constexpr (kMin) {
        pairs = _mm256_and_si256(pairs, _mm256_set1_epi16(15));
      }
      const __m256i scale[2] = {
          _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(pairs, 0xa0), 0xa0),
          _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(pairs, 0xf5), 0xf5)};
      DotBits<kRows>(a, a_stride, codes, scale, dot);
      if constexpr (kMin) return;
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
    if constexpr (kBits == 8 || kFormat.iq4) {
      DotBytes<kRows>(a, a_stride, codes, dot);
      offset -= kBits == 8 ? 128 : 0;
    } else {
      const __m256i ones = _mm256_set1_epi16(1);
      DotBits<kRows>(a, a_stride, codes, {ones, ones}, dot);
    }
    if constexpr (Shape::kOffset && !kFormat.iq4) {
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
      if constexpr (Shape::kSixBits) {
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
        if constexpr (Shape::kWhole) {
          d = _mm256_mul_ps(d, LoadFactors<!kMin>(factors + half * 8));
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
          __m256i mins;
          if constexpr (Shape::kHalves) {
            mins = _mm256_srli_epi16(HalfFactors(factors + half * 16), 4);
          } else if constexpr (Shape::kWhole) {
            m = _mm256_mul_ps(
                m, LoadFactors<false>(factors + kPanelCols + half * 8));
          }
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
            const uint8_t* of_row = row_s + r * a_stride;
            __m256 sum;
            if constexpr (Shape::kHalves) {
              sum = _mm256_mul_ps(
                  _mm256_set1_ps(*reinterpret_cast<const float*>(of_row)),
                  _mm256_cvtepi32_ps(
                      _mm256_madd_epi16(mins, Broadcast4(of_row + to_sum))));
            } else {
              sum = _mm256_set1_ps(
                  *reinterpret_cast<const float*>(of_row + to_scaled_sum));
            }
            acc[r] = _mm256_fmadd_ps(m, sum, acc[r]);
          }
        }
        a += kQuantBlock;
        row_s += 4;
        codes += Shape::kCodeBytes;
        if constexpr (Shape::kGroup > 1) factors += Shape::kFactorBytes;
      }
      scales += Shape::kScaleBytes;
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
