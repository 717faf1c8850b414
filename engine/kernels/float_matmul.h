// Floating-point matrix product out[M, N] (+)= A[M, K] B[K, N] with a packed B
// of FP32, FP16 or BF16 and FP32 arithmetic. Serves weights that are not
// quantized and the codecs' small matrices. Plain views and arguments; the
// caller validates, and splits the work by ranges of panels.
//
// An output is acc = fma(a[k], b[k], acc) over k in order from zero: the same
// bits on every instruction set, whatever M.
#ifndef XCACHE_ENGINE_KERNELS_FLOAT_MATMUL_H_
#define XCACHE_ENGINE_KERNELS_FLOAT_MATMUL_H_

#include <cstdint>

#include "engine/kernels/quant_matmul.h"

namespace xcache {

enum class FloatType { kF32, kF16, kBF16 };

[[gnu::always_inline]] inline int64_t FloatTypeBytes(FloatType type) {
  return type == FloatType::kF32 ? 4 : 2;
}

inline constexpr int kFloatPanelCols = 64;

// A view of a packed B. Columns lie in panels of 64, each [k][width], the last
// one as narrow as the columns that are left, rounded up to 16 (the padding is
// zero). 64-byte aligned.
struct FloatMatrix {
  int k = 0;  // inner dimension
  int n = 0;  // columns of the product
  FloatType type = FloatType::kF32;
  const uint8_t* data = nullptr;
};

[[gnu::always_inline]] inline int NumPanels(const FloatMatrix& b) {
  return (b.n + kFloatPanelCols - 1) / kFloatPanelCols;
}

struct FloatMatmulArgs {
  const float* a = nullptr;  // [num_rows, b.k]
  int64_t a_stride = 0;      // elements
  int num_rows = 0;
  FloatMatrix b;
  float* out = nullptr;  // [num_rows, b.n]
  int64_t out_stride = 0;
  Epilogue epilogue = Epilogue::kStore;
};
// Writes the columns of panels [first, last) and nothing else.
using FloatMatmulFn = void (*)(const FloatMatmulArgs& args, int first,
                               int last);

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_FLOAT_MATMUL_H_
