// Integer matrix product: rows of activations, quantized to int8 on the fly,
// times weights that were packed once (packed.h). Plain views and arguments;
// the caller validates, and splits the work by ranges of panels.
//
// Weight (row n, input k) of 32-wide block b is D[n,b] * (q - offset) + M[n,b],
// q an unsigned code of 4, 5, 6 or 8 bits; activation k is s[b] * a, a in
// [-127, 127]. An output is, over the blocks in order,
//   acc = fma(float(sum_k a * (q - offset)), D * s, acc)
//   acc = fma(M, s * float(sum_k a), acc)              where the matrix has M
// D and M are FP16 values d and m of the block or, with k_scales, products of
// d and m of eight blocks with small integers x and y of the block: exact in
// FP32. Where k_scales come without M (Q6_K), x is of 16 weights: with h the
// two halves of a block,
//   acc = fma(float(sum_h x[h] * sum_k a * (q - offset)), d * s, acc)
// The integer sums are exact in int32 (and the last one in FP32), so every
// instruction set and every tiling of rows gives the same bits: a row's result
// depends on that row only.
#ifndef XCACHE_ENGINE_KERNELS_QUANT_MATMUL_H_
#define XCACHE_ENGINE_KERNELS_QUANT_MATMUL_H_

#include <cstdint>

namespace xcache {

inline constexpr int kQuantBlock = 32;  // elements of K that share a scale
inline constexpr int kPanelCols = 16;   // output features of a panel

inline constexpr int kSuperBlocks = 8;  // blocks that share d, with k_scales

// How a matrix's blocks are kept: one of the formats of GGUF, in its own bits.
//   Q4_0 {4, offset 8}   Q5_0 {5, offset 16}   Q8_0 {8, offset 128, code = int8
//   Q4_1 {4, has_min}    Q5_1 {5, has_min}           + 128}
//   Q4_K {4, has_min, k_scales}   Q5_K {5, has_min, k_scales}
//   Q6_K {6, offset 32, k_scales}
struct QuantFormat {
  int bits = 4;
  int offset = 0;         // 0 .. 128; 0 where has_min
  bool has_min = false;   // whether there is m
  bool k_scales = false;  // whether blocks have integer scales
  bool operator==(const QuantFormat&) const = default;
};

// A view of packed weights: out feature n is column n % 16 of panel n / 16.
// A panel, 64-byte aligned, is
//   codes of block 0, 1, ...: eight chunks of 16 columns x 4 codes, chunk i's
//     of column c, in bytes 4c .. 4c+3, those of k = 4i .. 4i+3; in 64 * bits
//     bytes as vectors v[0], v[1], ... of 64 bytes:
//     8 bits: chunk i is v[i]
//     4 bits: chunks 2i and 2i+1 are the low and the high nibbles of v[i]
//     5 bits: as 4; the fifth bit of chunk i is bit i of v[4]
//     6 bits: chunks i = 0, 1, 2 are the low six bits of v[i], the bits above
//       them are bits 0-1, 2-3, 4-5 of chunk 3; v[3 ..] so for chunks 4 .. 7
//   scales of block 0, 1, ...: d[16], then m[16] where there is m, FP16; with
//     k_scales of eight blocks: d[16], then m[16] where there is m, then for
//     each of the blocks x[16], y[16] of 6 bits, or without m int8 x[16][2].
//     Those of 6 bits are four chunks of 64, in the order of the blocks, laid
//     out as the first four of 6-bit codes: 192 bytes.
// Where eight blocks share scales, cols is a multiple of 256.
struct QuantMatrix {
  int rows = 0;  // output features N
  int cols = 0;  // input features K, a multiple of 32
  QuantFormat format;
  const uint8_t* data = nullptr;
  int64_t panel_bytes = 0;
};

[[gnu::always_inline]] inline int64_t QuantCodeBytes(const QuantFormat& f) {
  return 64 * f.bits;  // of a block of a panel
}
// Of the blocks that share scales: one, or eight.
[[gnu::always_inline]] inline int64_t QuantScaleBytes(const QuantFormat& f) {
  return (f.has_min ? 64 : 32) +
         (f.k_scales ? kSuperBlocks * (f.has_min ? 24 : 32) : 0);
}

// Byte `at` of chunk `i` of 0 .. 3, where bytes of 6 bits are kept.
[[gnu::always_inline]] inline int SixBitsAt(const uint8_t* v, int i, int at) {
  if (i < 3) return v[i * 64 + at] & 63;
  return v[at] >> 6 | v[64 + at] >> 6 << 2 | v[128 + at] >> 6 << 4;
}

// x (which = 0) or y (1) of column `c` of block `b` of the eight whose 6-bit
// scales are at `factors`.
[[gnu::always_inline]] inline int QuantFactorAt(const uint8_t* factors, int b,
                                                int which, int c) {
  return SixBitsAt(factors, b / 2, (b % 2 * 2 + which) * kPanelCols + c);
}

// The code of column `c` and element `k` of a block.
[[gnu::always_inline]] inline int QuantCodeAt(int bits, const uint8_t* block,
                                              int c, int k) {
  const int chunk = k / 4;
  const auto byte = [block, at = c * 4 + k % 4](int vector) -> int {
    return block[vector * 64 + at];
  };
  if (bits == 8) return byte(chunk);
  if (bits == 6) {
    return SixBitsAt(block + chunk / 4 * 192, chunk % 4, c * 4 + k % 4);
  }
  const int nibble = byte(chunk / 2) >> (chunk % 2 * 4) & 15;
  return bits == 5 ? nibble | (byte(4) >> chunk & 1) << 4 : nibble;
}

[[gnu::always_inline]] inline int NumPanels(const QuantMatrix& w) {
  return (w.rows + kPanelCols - 1) / kPanelCols;
}

// Quantized activation rows. A row, 64-byte aligned, is int8 a[cols], then for
// the cols / 32 blocks float s[], float s_sum[] = s * float(sum a), int16
// sum[][2], of each half of a block.
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
