// The register tile that every floating-point product here is made of. Include
// after simd_*.h.
#ifndef XCACHE_ENGINE_KERNELS_TILE_SIMD_H_
#define XCACHE_ENGINE_KERNELS_TILE_SIMD_H_

#include "engine/kernels/float_matmul.h"

namespace xcache {
namespace {

template <FloatType kType>
struct Element;
template <>
struct Element<FloatType::kF32> {
  using Type = float;
  static XCACHE_INLINE F LoadVec(const float* p) { return Load(p); }
};
template <>
struct Element<FloatType::kF16> {
  using Type = uint16_t;
  static XCACHE_INLINE F LoadVec(const uint16_t* p) { return LoadF16(p); }
};
template <>
struct Element<FloatType::kBF16> {
  using Type = uint16_t;
  static XCACHE_INLINE F LoadVec(const uint16_t* p) { return LoadBf16(p); }
};

// acc[r][v] += sum over i < k, in order, of a[r * lda + i] * b[i * ldb + 16v].
// Lanes are columns, so an output's sum has one order, whatever kRows is.
template <int kRows, int kVecs, FloatType kType>
XCACHE_INLINE void MultiplyTile(const float* a, int64_t lda,
                                const typename Element<kType>::Type* b,
                                int64_t ldb, int k, F (&acc)[kRows][kVecs]) {
  for (int i = 0; i < k; ++i, ++a, b += ldb) {
    F columns[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      columns[v] = Element<kType>::LoadVec(b + v * 16);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F scalar = Set1(a[r * lda]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        acc[r][v] = Fma(scalar, columns[v], acc[r][v]);
      }
    }
  }
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_TILE_SIMD_H_
