// Integer matrix product: rows of activations, quantized to int8 on the fly,
// times weights that were packed once (packed.h). Plain views and arguments;
// the caller validates, and splits the work by ranges of panels.
//
// Weight (row n, input k) of 32-wide block b is D[n,b] * v + M[n,b], where v is
// q - offset, q an unsigned code of 2 to 8 bits, or what a table has for q;
// activation k is s[b] * a, a in [-127, 127]. An output is, over the blocks in
// order,
//   acc = fma(float(sum_k a * v), D * s, acc)
//   acc = fma(M, s * float(sum_k a), acc)              where the matrix has M
// D and M are FP16 values d and m of the block or, with factors, products of d
// and m of eight blocks with small integers x and y: exact in FP32. Where these
// are of 16 weights: with h the two halves of a block,
//   acc = fma(float(sum_h x[h] * sum_k a * v), d * s, acc)
//   acc = fma(m, s * float(sum_h y[h] * sum_k a), acc)
// The integer sums are exact in int32 (and the last one in FP32), so every
// instruction set and every tiling of rows gives the same bits: a row's result
// depends on that row only.
#ifndef XCACHE_ENGINE_KERNELS_QUANT_MATMUL_H_
#define XCACHE_ENGINE_KERNELS_QUANT_MATMUL_H_

#include <cstdint>

namespace xcache {

inline constexpr int kQuantBlock = 32;  // elements of K that share a scale
inline constexpr int kPanelCols = 16;   // output features of a panel

inline constexpr int kSuperBlocks = 8;  // blocks that share d, with factors

// Whether there are integer scales, and of how many weights each is.
enum class QuantFactors { kNone, kOf32, kOf16 };

// How a matrix's blocks are kept: one of the formats of GGUF, in its own bits.
struct QuantFormat {
  int bits = 4;
  int offset = 0;        // 0 .. 128; 0 where has_min or iq4
  bool has_min = false;  // whether there is m
  QuantFactors factors = QuantFactors::kNone;
  bool iq4 = false;  // codes stand for kIq4Values
  [[gnu::always_inline]] constexpr bool operator==(const QuantFormat&) const =
      default;
};

// All there are, but for their offsets, with what GGUF calls those that it has.
inline constexpr QuantFormat kQuantFormats[] = {
    {.bits = 4},                   // Q4_0, offset 8
    {.bits = 4, .has_min = true},  // Q4_1
    {.bits = 5},                   // Q5_0, offset 16
    {.bits = 5, .has_min = true},  // Q5_1
    {.bits = 8},                   // Q8_0, offset 128: code = int8 + 128
    {.bits = 2, .has_min = true, .factors = QuantFactors::kOf16},  // Q2_K
    {.bits = 3, .factors = QuantFactors::kOf16},  // Q3_K, offset 4
    {.bits = 4, .has_min = true, .factors = QuantFactors::kOf32},  // Q4_K
    {.bits = 5, .has_min = true, .factors = QuantFactors::kOf32},  // Q5_K
    {.bits = 6, .factors = QuantFactors::kOf16},  // Q6_K, offset 32
    {.bits = 4, .iq4 = true},                     // IQ4_NL
    {.bits = 4, .factors = QuantFactors::kOf32, .iq4 = true},  // IQ4_XS
};

// ggml's kvalues_iq4nl.
inline constexpr int8_t kIq4Values[16] = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// A view of packed weights: out feature n is column n % 16 of panel n / 16.
// A panel, 64-byte aligned, is
//   codes of block 0, 1, ...: eight chunks of 16 columns x 4 codes, chunk i's
//     of column c, in bytes 4c .. 4c+3, those of k = 4i .. 4i+3; in 64 * bits
//     bytes as vectors v[0], v[1], ... of 64 bytes:
//     8 bits: chunk i is v[i]
//     2 bits: chunk i is bits 2 (i % 4) and the one above of v[i / 4]
//     3 bits: as 2; the third bit of chunk i is bit i of v[2]
//     4 bits: chunks 2i and 2i+1 are the low and the high nibbles of v[i]
//     5 bits: as 4; the fifth bit of chunk i is bit i of v[4]
//     6 bits: chunks i = 0, 1, 2 are the low six bits of v[i], the bits above
//       them are bits 0-1, 2-3, 4-5 of chunk 3; v[3 ..] so for chunks 4 .. 7
//   scales of block 0, 1, ...: d[16], then m[16] where there is m, FP16; with
//     factors of eight blocks: d[16], then m[16] where there is m, then for
//     each of the blocks
//       of 32 weights, with m: x[16], y[16] of 6 bits: four chunks of 64, in
//         the order of the blocks, laid out as the first four of 6-bit codes
//       of 32 weights, without m: int8 x[16]
//       of 16 weights, with m: [16][2], x in the low nibble and y in the high
//       of 16 weights, without m: int8 x[16][2]
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
[[gnu::always_inline]] constexpr int64_t QuantScaleBytes(const QuantFormat& f) {
  const int of_block = f.factors == QuantFactors::kNone   ? 0
                       : f.factors == QuantFactors::kOf16 ? 32
                       : f.has_min                        ? 24
                                                          : 16;
  return (f.has_min ? 64 : 32) + kSuperBlocks * of_block;
}

// Byte `at` of chunk `i` of 0 .. 3, where bytes of 6 bits are kept.
[[gnu::always_inline]] inline int SixBitsAt(const uint8_t* v, int i, int at) {
  if (i < 3) return v[i * 64 + at] & 63;
  return v[at] >> 6 | v[64 + at] >> 6 << 2 | v[128 + at] >> 6 << 4;
}

// The integer scales of a column of a block, of each of its halves.
struct QuantFactorPair {
  int x[2] = {1, 1};
  int y[2] = {1, 1};
};
// Of column `c` of block `b` of those that share scales, which are at `scales`.
inline QuantFactorPair QuantFactorsAt(const QuantFormat& f,
                                      const uint8_t* scales, int b, int c) {
  QuantFactorPair pair;
  if (f.factors == QuantFactors::kNone) return pair;
  const uint8_t* from = scales + (f.has_min ? 64 : 32);
  for (int h = 0; h < 2; ++h) {
    if (f.factors == QuantFactors::kOf16) {
      const uint8_t byte = from[b * 32 + 2 * c + h];
      pair.x[h] = f.has_min ? byte & 15 : static_cast<int8_t>(byte);
      pair.y[h] = byte >> 4;
    } else if (f.has_min) {
      const int at = b % 2 * 2 * kPanelCols + c;
      pair.x[h] = SixBitsAt(from, b / 2, at);
      pair.y[h] = SixBitsAt(from, b / 2, at + kPanelCols);
    } else {
      pair.x[h] = static_cast<int8_t>(from[b * kPanelCols + c]);
    }
  }
  return pair;
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
  if (bits < 4) {
    const int pair = byte(chunk / 4) >> (chunk % 4 * 2) & 3;
    return bits == 3 ? pair | (byte(2) >> chunk & 1) << 2 : pair;
  }
  const int nibble = byte(chunk / 2) >> (chunk % 2 * 4) & 15;
  return bits == 5 ? nibble | (byte(4) >> chunk & 1) << 4 : nibble;
}

// What a code stands for, before its scale.
[[gnu::always_inline]] inline int QuantValue(const QuantFormat& f, int code) {
  return f.iq4 ? kIq4Values[code] : code - f.offset;
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
