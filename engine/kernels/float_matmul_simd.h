// The floating-point product in register tiles. Include after simd_*.h.
#ifndef XCACHE_ENGINE_KERNELS_FLOAT_MATMUL_SIMD_H_
#define XCACHE_ENGINE_KERNELS_FLOAT_MATMUL_SIMD_H_

#include "engine/kernels/isa_tables.h"
#include "engine/kernels/tile_simd.h"

namespace xcache {
namespace {

// kRows rows of `args` from `row`, times 16 * kVecs columns at `b`, of which
// `cols` are real; they start at column `begin` of the output.
template <int kRows, int kVecs, FloatType kType>
void RowTile(const FloatMatmulArgs& args, int row,
             const typename Element<kType>::Type* b, int64_t ldb, int begin,
             int cols) {
  F acc[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[r][v] = Zero();
  }
  MultiplyTile<kRows, kVecs, kType>(args.a + row * args.a_stride, args.a_stride,
                                    b, ldb, args.b.k, acc);
  const bool add = args.epilogue == Epilogue::kAdd;
  float* out = args.out + row * args.out_stride + begin;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r, out += args.out_stride) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      const int left = cols - v * 16;
      if (left >= 16) {
        const F sum = add ? Add(Load(out + v * 16), acc[r][v]) : acc[r][v];
        Store(sum, out + v * 16);
      } else {
        const F sum =
            add ? Add(LoadN(out + v * 16, left), acc[r][v]) : acc[r][v];
        StoreN(sum, out + v * 16, left);
      }
    }
  }
}

template <int kVecs, FloatType kType>
void AllRows(const FloatMatmulArgs& args,
             const typename Element<kType>::Type* b, int64_t ldb, int begin,
             int cols) {
  int row = 0;
  for (; row + kRowTile <= args.num_rows; row += kRowTile) {
    RowTile<kRowTile, kVecs, kType>(args, row, b, ldb, begin, cols);
  }
  switch (args.num_rows - row) {
    case 5:
      return RowTile<5, kVecs, kType>(args, row, b, ldb, begin, cols);
    case 4:
      return RowTile<4, kVecs, kType>(args, row, b, ldb, begin, cols);
    case 3:
      return RowTile<3, kVecs, kType>(args, row, b, ldb, begin, cols);
    case 2:
      return RowTile<2, kVecs, kType>(args, row, b, ldb, begin, cols);
    case 1:
      return RowTile<1, kVecs, kType>(args, row, b, ldb, begin, cols);
    default:
      return;
  }
}

template <FloatType kType>
void Panels(const FloatMatmulArgs& args, int first, int last) {
  static_assert(kRowTile == 6);
  using T = typename Element<kType>::Type;
  for (int panel = first; panel < last; ++panel) {
    const int begin = panel * kFloatPanelCols;
    const int left = args.b.n - begin;
    const int cols = left < kFloatPanelCols ? left : kFloatPanelCols;
    const int vecs = (cols + 15) / 16;
    const T* b = reinterpret_cast<const T*>(args.b.data) +
                 static_cast<int64_t>(begin) * args.b.k;
    for (int v = 0; v < vecs; v += kVecTile) {
      const int at = begin + v * 16;
      const int real = cols - v * 16;
      const int width = vecs - v < kVecTile ? vecs - v : kVecTile;
      if constexpr (kVecTile == 4) {
        if (width == 4) AllRows<4, kType>(args, b, vecs * 16, at, real);
        if (width == 3) AllRows<3, kType>(args, b, vecs * 16, at, real);
        if (width == 2) AllRows<2, kType>(args, b, vecs * 16, at, real);
      }
      if (width == 1) AllRows<1, kType>(args, b + v * 16, vecs * 16, at, real);
    }
  }
}

void FloatMatmul(const FloatMatmulArgs& args, int first, int last) {
  switch (args.b.type) {
    case FloatType::kF32:
      return Panels<FloatType::kF32>(args, first, last);
    case FloatType::kF16:
      return Panels<FloatType::kF16>(args, first, last);
    case FloatType::kBF16:
      return Panels<FloatType::kBF16>(args, first, last);
  }
}

XCACHE_INLINE void SetFloatMatmul(Kernels* table) {
  table->float_row_tile = kRowTile;
  table->float_matmul = FloatMatmul;
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_FLOAT_MATMUL_SIMD_H_
