// Integer matrix product: rows of activations, quantized to int8 on the fly,
// times weights that were packed once (packed.h). Plain views and arguments;
// the caller validates, and splits the work by ranges of panels.
//
// Weight (row n, input k) of 32-wide block b is d[n,b] * (q - offset) + m[n,b],
// q an unsigned code of 4 or 8 bits; activation k is s[b] * a, a in [-127,
// 127]. An output is, over the blocks in order,
//   acc = fma(float(sum_k a * (q - offset)), d * s, acc)
//   acc = fma(m, s * float(sum_k a), acc)              where the matrix has m
// The sum over a block is exact in int32, so every instruction set and every
// tiling of rows gives the same bits: a row's result depends on that row only.
#ifndef XCACHE_ENGINE_KERNELS_QUANT_MATMUL_H_
#define XCACHE_ENGINE_KERNELS_QUANT_MATMUL_H_

#include <cstdint>

namespace xcache {

inline constexpr int kQuantBlock = 32;  // elements of K that share a scale
inline constexpr int kPanelCols = 16;   // output features of a panel

// A view of packed weights: out feature n is column n % 16 of panel n / 16.
// A panel, 64-byte aligned, is
//   codes of block 0, 1, ...  chunks of 64 bytes, column c's at 4c .. 4c+3:
//     8 bits: chunk i holds k = 4i .. 4i+3              (8 chunks, 512 bytes)
//     4 bits: chunk i holds k = 8i .. 8i+3 in the low, 8i+4 .. 8i+7 in the
//             high nibbles                              (4 chunks, 256 bytes)
//   scales of block 0, 1, ... d[16], then m[16] where there is m; FP16 or FP32
struct QuantMatrix {
  int rows = 0;  // output features N
  int cols = 0;  // input features K, a multiple of 32
  bool u8 = false;
  bool f32_scales = false;
  bool has_min = false;
  int offset = 0;  // 0 where has_min
  const uint8_t* data = nullptr;
  int64_t panel_bytes = 0;
};

[[gnu::always_inline]] inline int NumPanels(const QuantMatrix& w) {
  return (w.rows + kPanelCols - 1) / kPanelCols;
}

// Quantized activation rows. A row, 64-byte aligned, is int8 a[cols], then for
// the cols / 32 blocks float s[], float s_sum[] = s * float(sum a), int32
// sum[].
struct QuantRows {
  uint8_t* data = nullptr;
  int64_t stride = 0;  // bytes, at least QuantRowBytes(cols), a multiple of 64
  int cols = 0;
};

[[gnu::always_inline]] inline int64_t QuantRowBytes(int cols) {
  return (static_cast<int64_t>(cols) + cols / kQuantBlock * 12 + 63) / 64 * 64;
}

// s = amax / 127, a = round_half_even(x * (127 / amax)). A block whose amax is
// below kQuantTiny is zero: 127 / amax would overflow. Values that are not
// finite give unspecified codes in [-127, 127].
inline constexpr float kQuantTiny = 1e-30f;
using QuantizeRowsFn = void (*)(const float* x, int64_t x_stride, int num_rows,
                                const QuantRows& out);

enum class Epilogue {
  kStore,  // out = acc
  kAdd,    // out = out + acc
};

struct QuantMatmulArgs {
  QuantRows a;
  int num_rows = 0;
  QuantMatrix w;         // w.cols == a.cols
  float* out = nullptr;  // [num_rows, w.rows], FP32
  int64_t out_stride = 0;
  Epilogue epilogue = Epilogue::kStore;
};
// Writes the columns of panels [first, last) and nothing else.
using QuantMatmulFn = void (*)(const QuantMatmulArgs& args, int first,
                               int last);

enum class Activation { kSilu, kGelu };  // of a gate

struct QuantGateUpArgs {
  QuantRows a;
  int num_rows = 0;
  QuantMatrix gate, up;  // of one shape
  Activation activation = Activation::kSilu;
  // [num_rows, gate.rows]: activation(a gate^T) * (a up^T)
  float* out = nullptr;
  int64_t out_stride = 0;
};
// The same bits as two products and silu_mul, or gelu_mul.
using QuantGateUpFn = void (*)(const QuantGateUpArgs& args, int first,
                               int last);

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_QUANT_MATMUL_H_
