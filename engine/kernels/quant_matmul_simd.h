// What the quantized product does the same way on every vector instruction set:
// quantizing rows, walking panels and rows, finishing outputs. The panel's
// arithmetic itself is in the files of the instruction sets: they provide
//   template <QuantFormat format>  // one of kQuantFormats
//   struct Panel {
//     template <int rows, int panels> static void Dot(...);  // a DotFn
//   };
// Include after simd_*.h, simd_math.h.
#ifndef XCACHE_ENGINE_KERNELS_QUANT_MATMUL_SIMD_H_
#define XCACHE_ENGINE_KERNELS_QUANT_MATMUL_SIMD_H_

#include <iterator>
#include <utility>

#include "engine/kernels/isa_tables.h"

namespace xcache {
namespace {

void QuantizeRows(const float* x, int64_t x_stride, int num_rows,
                  const QuantRows& out) {
  const int num_blocks = out.cols / kQuantBlock;
  for (int row = 0; row < num_rows; ++row) {
    uint8_t* base = out.data + row * out.stride;
    int8_t* codes = reinterpret_cast<int8_t*>(base);
    float* scales = reinterpret_cast<float*>(base + out.cols);
    float* scaled_sums = scales + num_blocks;
    int16_t* sums = reinterpret_cast<int16_t*>(scaled_sums + num_blocks);
    for (int b = 0; b < num_blocks; ++b) {
      const float* in = x + row * x_stride + b * kQuantBlock;
      const F low = Load(in);
      const F high = Load(in + 16);
      const float amax = MaxLane(Max(Abs(low), Abs(high)));
      const bool tiny = amax < kQuantTiny;
      const float scale = tiny ? 0.0f : amax / 127.0f;
      const F inverse = Set1(tiny ? 0.0f : 127.0f / amax);
      const F magic = Set1(kRoundMagic);
      const F bound = Set1(127.0f);
      const F a = Sub(Add(Mul(low, inverse), magic), magic);
      const F c = Sub(Add(Mul(high, inverse), magic), magic);
      const F code0 = Max(Min(a, bound), Set1(-127.0f));
      const F code1 = Max(Min(c, bound), Set1(-127.0f));
      StoreI8(code0, codes + b * kQuantBlock);
      StoreI8(code1, codes + b * kQuantBlock + 16);
      // Small integers: exact in any order.
      const float sum0 = SumLanes(code0);
      const float sum1 = SumLanes(code1);
      scales[b] = scale;
      scaled_sums[b] = scale * (sum0 + sum1);
      sums[2 * b] = static_cast<int16_t>(sum0);
      sums[2 * b + 1] = static_cast<int16_t>(sum1);
    }
  }
}

// What a block of a panel is made of; see QuantMatrix.
template <QuantFormat kFormat>
struct PanelShape {
  static constexpr int kBits = kFormat.bits;
  static constexpr bool kMin = kFormat.has_min;
  static constexpr bool kOffset = !kMin;  // a matrix has one or the other
  // Integer scales: of halves of blocks; of blocks; these in 6 bits.
  static constexpr bool kHalves = kFormat.factors == QuantFactors::kOf16;
  static constexpr bool kWhole = kFormat.factors == QuantFactors::kOf32;
  static constexpr bool kSixBits = kWhole && kMin;
  static constexpr int kCodeBytes = 64 * kBits;
  // Of as many blocks as share scales, of which these have integer ones.
  static constexpr int kGroup = kHalves || kWhole ? kSuperBlocks : 1;
  static constexpr int kHalfBytes = kMin ? 64 : 32;
  static constexpr int kScaleBytes = static_cast<int>(QuantScaleBytes(kFormat));
  // Of the integer scales of a block, unpacked.
  static constexpr int kFactorBytes = kWhole && !kMin ? 16 : 32;
};

XCACHE_INLINE Words LoadWords(const uint8_t* p) {
  Words words;
  __builtin_memcpy(&words, p, sizeof(words));
  return words;
}

// The codes of chunk i of a block, or those of the columns that a register
// holds: bytes, to which shifts of 16 bits bring some of their neighbours'
// bits, which the masks take away.
template <int kBits>
XCACHE_INLINE Words CodesOf(const uint8_t* codes, int i) {
  if constexpr (kBits == 8) return LoadWords(codes + i * 64);
  if constexpr (kBits < 4) {
    const Words pairs = LoadWords(codes + i / 4 * 64) >> (i % 4 * 2) & 0x0303;
    if constexpr (kBits == 2) return pairs;
    const Words third = LoadWords(codes + 128);
    return pairs | ((i <= 2 ? third << (2 - i) : third >> (i - 2)) & 0x0404);
  }
  if constexpr (kBits == 6) {
    const uint8_t* v = codes + i / 4 * 192;
    if (i % 4 < 3) return LoadWords(v + i % 4 * 64) & 0x3f3f;
    return (LoadWords(v) >> 6 & 0x0303) | (LoadWords(v + 64) >> 4 & 0x0c0c) |
           (LoadWords(v + 128) >> 2 & 0x3030);
  }
  const Words both = LoadWords(codes + i / 2 * 64);
  const Words nibble = (i % 2 == 0 ? both : both >> 4) & 0x0f0f;
  if constexpr (kBits == 4) return nibble;
  const Words fifth = LoadWords(codes + 256);
  return nibble | ((i <= 4 ? fifth << (4 - i) : fifth >> (i - 4)) & 0x1010);
}

// The integer scales of eight blocks, kept in 6 bits: x[16] of block b at
// out + 32 b, y[16] after them. Done for all at once, it costs a few
// instructions a block.
XCACHE_INLINE void UnpackFactors(const uint8_t* factors, uint8_t* out) {
#pragma GCC unroll 2
  for (size_t at = 0; at < 64; at += sizeof(Words)) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Words bytes = CodesOf<6>(factors + at, i);
      __builtin_memcpy(out + i * 64 + at, &bytes, sizeof(bytes));
    }
  }
}

// Asks for a block's codes and scales, to be used one or two panels later.
// Asked for between the products of one block and those of the next, as many
// loads are under way as memory can serve: faster than bringing a panel into
// the caches before its products (kernels_bench, Zen 4: Q8_0 1.2 times with one
// row, 1.5 times with 8).
template <int kBits>
XCACHE_INLINE void PrefetchBlock(const uint8_t* codes, const uint8_t* scales) {
#pragma GCC unroll 8
  for (int i = 0; i < kBits; ++i) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + i * 64), _MM_HINT_T1);
  }
  _mm_prefetch(reinterpret_cast<const char*>(scales), _MM_HINT_T1);
}

// The two sums of a block of an activation row, at `p`.
XCACHE_INLINE void LoadSums(const uint8_t* p, int (&sums)[2]) {
  int16_t both[2];
  __builtin_memcpy(both, p, 4);
  sums[0] = both[0];
  sums[1] = both[1];
}
// out[p][r][16] = activation rows r from `a` times panel p, for as many rows
// and panels as the function is for.
using DotFn = void (*)(const uint8_t* a, int64_t a_stride, const QuantMatrix& w,
                       const uint8_t* const* panels, int64_t ahead,
                       float* const* out);
// [panels - 1][0, 1, 2 for 1, 2, 4 rows]
struct DotFns {
  DotFn of[2][3];
};
constexpr int kRowsAtATime = 4;

template <typename P>
constexpr DotFns DotsOf() {
  return {
      {{P::template Dot<1, 1>, P::template Dot<2, 1>, P::template Dot<4, 1>},
       {P::template Dot<1, 2>, P::template Dot<2, 2>, P::template Dot<4, 2>}}};
}

// Of kQuantFormats, in their order.
struct FormatDots {
  DotFns of[std::size(kQuantFormats)];
};
template <template <QuantFormat> typename Panel, size_t... kIndices>
constexpr FormatDots AllDots(std::index_sequence<kIndices...>) {
  return {{DotsOf<Panel<kQuantFormats[kIndices]>>()...}};
}

template <template <QuantFormat> typename Panel>
const DotFns& ChooseDots(QuantFormat format) {
  static constexpr auto kDots =
      AllDots<Panel>(std::make_index_sequence<std::size(kQuantFormats)>());
  format.offset = 0;
  size_t i = 0;
  while (!(kQuantFormats[i] == format)) ++i;
  return kDots.of[i];
}

// All rows times one or two panels of equal shape: calls finish(row, rows) for
// each tile of rows, with the products in `out` (see DotFn).
template <typename Finish>
XCACHE_INLINE void ForRowTiles(const DotFns& dots, const QuantRows& a,
                               int num_rows, const QuantMatrix& w,
                               const uint8_t* const* panels, int num_panels,
                               int64_t ahead, float* const* out,
                               const Finish& finish) {
  for (int row = 0; row < num_rows;) {
    const int left = num_rows - row;
    const int size = left >= 4 ? 2 : left >= 2 ? 1 : 0;
    dots.of[num_panels - 1][size](a.data + row * a.stride, a.stride, w, panels,
                                  row == 0 ? ahead : 0, out);
    finish(row, 1 << size);
    row += 1 << size;
  }
}

// Writes or adds rows x 16 products, of which `cols` are real.
XCACHE_INLINE void FinishProducts(const float* products, int rows, int cols,
                                  bool add, float* out, int64_t out_stride) {
  for (int r = 0; r < rows; ++r, out += out_stride) {
    const F sum = Load(products + r * kPanelCols);
    if (cols >= kPanelCols) {
      Store(add ? Add(Load(out), sum) : sum, out);
    } else {
      StoreN(add ? Add(LoadN(out, cols), sum) : sum, out, cols);
    }
  }
}

template <template <QuantFormat> typename Panel>
void QuantMatmul(const QuantMatmulArgs& args, int first, int last) {
  const DotFns& dots = ChooseDots<Panel>(args.w.format);
  const bool add = args.epilogue == Epilogue::kAdd;
  alignas(64) float products[2][kRowsAtATime * kPanelCols];
  float* const to[2] = {products[0], products[1]};
  for (int panel = first; panel < last; panel += 2) {
    const int num_panels = last - panel >= 2 ? 2 : 1;
    const uint8_t* codes = args.w.data + panel * args.w.panel_bytes;
    const uint8_t* const panels[2] = {codes, codes + args.w.panel_bytes};
    const auto finish = [&](int row, int rows) {
      for (int p = 0; p < num_panels; ++p) {
        const int begin = (panel + p) * kPanelCols;
        FinishProducts(products[p], rows, args.w.rows - begin, add,
                       args.out + row * args.out_stride + begin,
                       args.out_stride);
      }
    };
    ForRowTiles(dots, args.a, args.num_rows, args.w, panels, num_panels,
                2 * args.w.panel_bytes, to, finish);
  }
}

// out = activation(gate) * up, of rows x 16 products.
template <F (*kActivation)(F)>
XCACHE_INLINE void FinishGateUp(const float* gate, const float* up, int rows,
                                int cols, float* out, int64_t out_stride) {
  for (int r = 0; r < rows; ++r, out += out_stride) {
    const F value = Mul(kActivation(Load(gate + r * kPanelCols)),
                        Load(up + r * kPanelCols));
    if (cols >= kPanelCols) {
      Store(value, out);
    } else {
      StoreN(value, out, cols);
    }
  }
}

template <template <QuantFormat> typename Panel>
void QuantGateUp(const QuantGateUpArgs& args, int first, int last) {
  const DotFns& gate_dots = ChooseDots<Panel>(args.gate.format);
  const DotFns& up_dots = ChooseDots<Panel>(args.up.format);
  const bool alike = args.gate.format == args.up.format;
  alignas(64) float products[2][kRowsAtATime * kPanelCols];
  float* const to[2] = {products[0], products[1]};
  for (int panel = first; panel < last; ++panel) {
    const uint8_t* const panels[2] = {
        args.gate.data + panel * args.gate.panel_bytes,
        args.up.data + panel * args.up.panel_bytes};
    const int cols = args.gate.rows - panel * kPanelCols;
    float* out = args.out + panel * kPanelCols;
    const auto finish = [&](int row, int rows) {
      float* to_row = out + row * args.out_stride;
      if (args.activation == Activation::kSilu) {
        FinishGateUp<Silu>(products[0], products[1], rows, cols, to_row,
                           args.out_stride);
      } else {
        FinishGateUp<Gelu>(products[0], products[1], rows, cols, to_row,
                           args.out_stride);
      }
    };
    if (alike) {
      ForRowTiles(gate_dots, args.a, args.num_rows, args.gate, panels, 2,
                  args.gate.panel_bytes, to, finish);
      continue;
    }
    for (int row = 0; row < args.num_rows; ++row) {
      const uint8_t* a = args.a.data + row * args.a.stride;
      gate_dots.of[0][0](a, args.a.stride, args.gate, panels, 0, to);
      up_dots.of[0][0](a, args.a.stride, args.up, panels + 1, 0, to + 1);
      finish(row, 1);
    }
  }
}

template <template <QuantFormat> typename Panel>
XCACHE_INLINE void SetQuantMatmul(Kernels* table) {
  table->quant_row_tile = kRowsAtATime;
  table->quantize_rows = QuantizeRows;
  table->quant_matmul = QuantMatmul<Panel>;
  table->quant_gate_up = QuantGateUp<Panel>;
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_QUANT_MATMUL_SIMD_H_
