// int_matmul.h in register tiles. Include after simd_*.h and the integer vector
// I of sixteen columns.
#ifndef XCACHE_ENGINE_KERNELS_INT_MATMUL_SIMD_H_
#define XCACHE_ENGINE_KERNELS_INT_MATMUL_SIMD_H_

#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/stream_simd.h"

namespace xcache {
namespace {

constexpr int kPanelVecs = kIntPanelCols / 16;
// Bytes of a panel's step.
constexpr int64_t kStepBytes = 4 * kIntPanelCols;

XCACHE_INLINE int32_t StepAt(const uint8_t* a) {
  int32_t values;
  __builtin_memcpy(&values, a, 4);
  return values;
}

// The scaled sums of 16 columns from `column` on.
XCACHE_INLINE void Finish(const IntMatmulArgs& args, int64_t row, int column,
                          I sums) {
  const F scaled = Mul(ToFloats(sums), Set1(args.row_scales[row]));
  float* to = args.out + row * args.out_stride + column;
  const float* scales = args.col_scales + column;
  const bool add = args.epilogue == Epilogue::kAdd;
  const int left = args.b.n - column;
  if (left >= 16) {
    const F value = Mul(scaled, Load(scales));
    Store(add ? Add(Load(to), value) : value, to);
  } else if (left > 0) {
    const F value = Mul(scaled, LoadN(scales, left));
    StoreN(add ? Add(LoadN(to, left), value) : value, to, left);
  }
}

// kRows rows from `row` on, times 16 kVecTile columns at `b`.
template <IntType kType, int kRows>
void IntTile(const IntMatmulArgs& args, int64_t row, const uint8_t* b,
             int column) {
  constexpr bool kIs16 = kType == IntType::kI16;
  I acc[kRows][kVecTile];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecTile; ++v) {
      if constexpr (kIs16) {
        acc[r][v] = ZeroInts();
      } else {
        acc[r][v] = Start8(args.b.col_sums + column + v * 16);
      }
    }
  }
  const uint8_t* a = static_cast<const uint8_t*>(args.a) + row * args.a_stride;
  const int steps = NumSteps(args.b);
  for (int step = 0; step < steps; ++step, a += 4, b += kStepBytes) {
    I columns[kVecTile];
#pragma GCC unroll 4
    for (int v = 0; v < kVecTile; ++v) columns[v] = LoadInts(b + v * 64);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const int32_t values = StepAt(a + r * args.a_stride);
      if constexpr (kIs16) {
        const I pair = Set16(values);
#pragma GCC unroll 4
        for (int v = 0; v < kVecTile; ++v) {
          acc[r][v] = MultiplyAdd16(acc[r][v], pair, columns[v]);
        }
      } else {
        const I four = Set8(values);
#pragma GCC unroll 4
        for (int v = 0; v < kVecTile; ++v) {
          acc[r][v] = MultiplyAdd8(acc[r][v], four, columns[v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecTile; ++v) {
      Finish(args, row + r, column + v * 16, acc[r][v]);
    }
  }
}

template <IntType kType>
void IntPanels(const IntMatmulArgs& args, int first, int last) {
  static_assert(kRowTile == 6);
  const int64_t panel_bytes = NumSteps(args.b) * kStepBytes;
  for (int panel = first; panel < last; ++panel) {
    const uint8_t* b = args.b.data + panel * panel_bytes;
    Stream(b, panel_bytes);
    for (int v = 0; v < kPanelVecs; v += kVecTile) {
      const int column = panel * kIntPanelCols + v * 16;
      const uint8_t* at = b + v * 64;
      int row = 0;
      for (; row + kRowTile <= args.num_rows; row += kRowTile) {
        IntTile<kType, kRowTile>(args, row, at, column);
      }
      switch (args.num_rows - row) {
        case 5:
          IntTile<kType, 5>(args, row, at, column);
          break;
        case 4:
          IntTile<kType, 4>(args, row, at, column);
          break;
        case 3:
          IntTile<kType, 3>(args, row, at, column);
          break;
        case 2:
          IntTile<kType, 2>(args, row, at, column);
          break;
        case 1:
          IntTile<kType, 1>(args, row, at, column);
          break;
        default:
          break;
      }
    }
  }
}

void IntMatmul(const IntMatmulArgs& args, int first, int last) {
  if (args.b.type == IntType::kI16) {
    IntPanels<IntType::kI16>(args, first, last);
  } else {
    IntPanels<IntType::kI8>(args, first, last);
  }
}

XCACHE_INLINE F LoadUpTo(const float* p, int n) {
  return n >= 16 ? Load(p) : LoadN(p, n);
}

// 16 elements of a row from `i` on, or as many as are left and zeros.
XCACHE_INLINE F RowAt(const RoundRowArgs& args, int i) {
  const int left = args.n - i;
  F x = LoadUpTo(args.values + i, left);
  if (args.less != nullptr) x = Sub(x, LoadUpTo(args.less + i, left));
  if (args.scales != nullptr) x = Mul(x, LoadUpTo(args.scales + i, left));
  return x;
}

float RoundRow(const RoundRowArgs& args) {
  // A NaN or an infinity makes `poison` a NaN; what `most` is then does not
  // count.
  F most = Zero(), poison = Zero();
  for (int i = 0; i < args.n; i += 16) {
    const F x = RowAt(args, i);
    most = Max(most, Abs(x));
    poison = Fma(x, Zero(), poison);
  }
  const float largest = MaxLane(most);
  if (!(SumLanes(poison) == 0.0f && largest > kLeastRounded &&
        largest < kMostRounded)) {
    __builtin_memset(
        args.out, 0,
        static_cast<size_t>(args.n) * (args.type == IntType::kI16 ? 2 : 1));
    return 0.0f;
  }
  const F scale = Set1(args.most / largest);
  for (int i = 0; i < args.n; i += 16) {
    const F x = Mul(RowAt(args, i), scale);
    const int left = args.n - i;
    if (args.type == IntType::kI16) {
      int16_t* to = static_cast<int16_t*>(args.out) + i;
      int16_t last[16];
      StoreI16(x, left >= 16 ? to : last);
      if (left < 16) {
        __builtin_memcpy(to, last, static_cast<size_t>(left) * 2);
      }
    } else {
      int8_t* to = static_cast<int8_t*>(args.out) + i;
      int8_t last[16];
      StoreI8(x, left >= 16 ? to : last);
      if (left < 16) __builtin_memcpy(to, last, static_cast<size_t>(left));
    }
  }
  return largest / args.most;
}

XCACHE_INLINE void SetIntMatmul(CodecKernels* table) {
  table->int_matmul = IntMatmul;
  table->round_row = RoundRow;
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_INT_MATMUL_SIMD_H_
