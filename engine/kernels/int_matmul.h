// Matrix products of integers of 16 or 8 bits with sums in int32, modulo 2^32:
// exact where a sum fits, whatever its order, so that every instruction set
// gives the same bits, whatever M. They turn the pages of xquant-tc into rows.
// Plain views and arguments; the caller validates, and splits the work by
// ranges of panels.
#ifndef XCACHE_ENGINE_KERNELS_INT_MATMUL_H_
#define XCACHE_ENGINE_KERNELS_INT_MATMUL_H_

#include <cstdint>

#include "engine/kernels/quant_matmul.h"

namespace xcache {

// kI8: -127 to 127.
enum class IntType { kI16, kI8 };

inline constexpr int kIntPanelCols = 64;

// A view of a packed B: columns lie in panels of 64, each [NumSteps][64] of 4
// bytes, a step being 2 or 4 neighbours of the inner dimension; padding is 0.
// 64-byte aligned.
struct IntMatrix {
  int k = 0;  // inner dimension
  int n = 0;  // columns of the product
  IntType type = IntType::kI16;
  const uint8_t* data = nullptr;
  const int32_t* col_sums = nullptr;  // [panels * 64], of kI8
};

[[gnu::always_inline]] inline int NumPanels(const IntMatrix& b) {
  return (b.n + kIntPanelCols - 1) / kIntPanelCols;
}
[[gnu::always_inline]] inline int NumSteps(const IntMatrix& b) {
  return b.type == IntType::kI16 ? (b.k + 1) / 2 : (b.k + 3) / 4;
}

// out = A B, or out + A B: a sum becomes sum * row_scales[row] *
// col_scales[column], FP32, multiplied in this order.
struct IntMatmulArgs {
  // [num_rows][4 NumSteps(b)] bytes of b.type, any beyond k; 4-byte aligned.
  const void* a = nullptr;
  int64_t a_stride = 0;  // bytes
  int num_rows = 0;
  IntMatrix b;
  const float* row_scales = nullptr;  // [num_rows]
  const float* col_scales = nullptr;  // [n]
  float* out = nullptr;               // [num_rows, n]
  int64_t out_stride = 0;             // elements
  Epilogue epilogue = Epilogue::kStore;
};
// Writes the columns of panels [first, last) and nothing else.
using IntMatmulFn = void (*)(const IntMatmulArgs& args, int first, int last);

// A row of A: x = (values - less) * scales, times most / max |x|, as the
// nearest integer, to even where two are equally near. Returns what the
// integers are to be multiplied with; where an |x| is not below 2^100, or none
// is above 2^-100, that is 0 and so are they.
struct RoundRowArgs {
  const float* values = nullptr;  // [n]
  const float* less = nullptr;    // [n]; null: 0
  const float* scales = nullptr;  // [n]; null: 1
  int n = 0;
  float most = 0.0f;  // at most what `type` holds
  IntType type = IntType::kI16;
  void* out = nullptr;  // [n]
};
using RoundRowFn = float (*)(const RoundRowArgs& args);

inline constexpr float kMostRounded = 0x1p100f;
inline constexpr float kLeastRounded = 0x1p-100f;

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_INT_MATMUL_H_
