// What the quantized product does the same way on every vector instruction set:
// quantizing rows, walking panels and rows, finishing outputs. The panel's
// arithmetic itself is in the files of the instruction sets: they provide
//   template <bool u8, bool has_min, bool f32_scales, bool has_offset>
//   struct Panel { template <int rows> static void Dot(...); };
// Include after simd_*.h, simd_math.h.
#ifndef XCACHE_ENGINE_KERNELS_QUANT_MATMUL_SIMD_H_
#define XCACHE_ENGINE_KERNELS_QUANT_MATMUL_SIMD_H_

#include "engine/kernels/isa_tables.h"
#include "engine/kernels/stream_simd.h"

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
    int32_t* sums = reinterpret_cast<int32_t*>(scaled_sums + num_blocks);
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
      const float sum = SumLanes(Add(code0, code1));
      scales[b] = scale;
      scaled_sums[b] = scale * sum;
      sums[b] = static_cast<int32_t>(sum);
    }
  }
}

// acc[r][16] of kRows activation rows from `a` times a panel.
using DotFn = void (*)(const uint8_t* a, int64_t a_stride, const QuantMatrix& w,
                       const uint8_t* panel, float* acc);
struct DotFns {
  DotFn rows1, rows2, rows4, rows8;
};

template <template <bool, bool, bool, bool> typename Panel, bool kU8, bool kMin,
          bool kF32, bool kOffset>
XCACHE_INLINE DotFns DotsOf() {
  using P = Panel<kU8, kMin, kF32, kOffset>;
  return {P::template Dot<1>, P::template Dot<2>, P::template Dot<4>,
          P::template Dot<8>};
}

template <template <bool, bool, bool, bool> typename Panel, bool kU8, bool kMin>
XCACHE_INLINE DotFns ChooseScales(const QuantMatrix& w) {
  if (w.f32_scales) {
    return w.offset != 0 ? DotsOf<Panel, kU8, kMin, true, true>()
                         : DotsOf<Panel, kU8, kMin, true, false>();
  }
  return w.offset != 0 ? DotsOf<Panel, kU8, kMin, false, true>()
                       : DotsOf<Panel, kU8, kMin, false, false>();
}

template <template <bool, bool, bool, bool> typename Panel>
DotFns ChooseDots(const QuantMatrix& w) {
  if (w.u8) {
    return w.has_min ? ChooseScales<Panel, true, true>(w)
                     : ChooseScales<Panel, true, false>(w);
  }
  return w.has_min ? ChooseScales<Panel, false, true>(w)
                   : ChooseScales<Panel, false, false>(w);
}

// How many rows come next, of `left`, and their function.
XCACHE_INLINE DotFn NextDot(const DotFns& dots, int left, int* rows) {
  *rows = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
  return left >= 8   ? dots.rows8
         : left >= 4 ? dots.rows4
         : left >= 2 ? dots.rows2
                     : dots.rows1;
}

// Panels to bring into the caches together.
XCACHE_INLINE int PanelsAtATime(const QuantMatrix& w) {
  const int64_t n = kStreamBytes / w.panel_bytes;
  return n < 1 ? 1 : static_cast<int>(n);
}
// Brings panel `panel` and those after it into the caches, if it is the first
// of a group of `step` that starts at `first`.
XCACHE_INLINE void StreamPanels(const QuantMatrix& w, int first, int panel,
                                int last, int step) {
  if ((panel - first) % step != 0) return;
  const int n = last - panel < step ? last - panel : step;
  Stream(w.data + panel * w.panel_bytes, n * w.panel_bytes);
}

template <template <bool, bool, bool, bool> typename Panel>
void QuantMatmul(const QuantMatmulArgs& args, int first, int last) {
  const DotFns dots = ChooseDots<Panel>(args.w);
  const bool add = args.epilogue == Epilogue::kAdd;
  const int step = PanelsAtATime(args.w);
  alignas(64) float acc[8 * kPanelCols];
  for (int panel = first; panel < last; ++panel) {
    StreamPanels(args.w, first, panel, last, step);
    const uint8_t* codes = args.w.data + panel * args.w.panel_bytes;
    const int cols = args.w.rows - panel * kPanelCols;
    float* out = args.out + panel * kPanelCols;
    int rows;
    for (int row = 0; row < args.num_rows; row += rows) {
      const DotFn dot = NextDot(dots, args.num_rows - row, &rows);
      dot(args.a.data + row * args.a.stride, args.a.stride, args.w, codes, acc);
      for (int r = 0; r < rows; ++r, out += args.out_stride) {
        const F sum = Load(acc + r * kPanelCols);
        if (cols >= kPanelCols) {
          Store(add ? Add(Load(out), sum) : sum, out);
        } else {
          StoreN(add ? Add(LoadN(out, cols), sum) : sum, out, cols);
        }
      }
    }
  }
}

template <template <bool, bool, bool, bool> typename Panel>
void QuantGateUp(const QuantGateUpArgs& args, int first, int last) {
  const DotFns gate_dots = ChooseDots<Panel>(args.gate);
  const DotFns up_dots = ChooseDots<Panel>(args.up);
  alignas(64) float gate[8 * kPanelCols];
  alignas(64) float up[8 * kPanelCols];
  const int gate_step = PanelsAtATime(args.gate);
  const int up_step = PanelsAtATime(args.up);
  for (int panel = first; panel < last; ++panel) {
    StreamPanels(args.gate, first, panel, last, gate_step);
    StreamPanels(args.up, first, panel, last, up_step);
    const int cols = args.gate.rows - panel * kPanelCols;
    float* out = args.out + panel * kPanelCols;
    int rows;
    for (int row = 0; row < args.num_rows; row += rows) {
      const uint8_t* a = args.a.data + row * args.a.stride;
      const int left = args.num_rows - row;
      NextDot(gate_dots, left, &rows)(
          a, args.a.stride, args.gate,
          args.gate.data + panel * args.gate.panel_bytes, gate);
      NextDot(up_dots, left, &rows)(a, args.a.stride, args.up,
                                    args.up.data + panel * args.up.panel_bytes,
                                    up);
      for (int r = 0; r < rows; ++r, out += args.out_stride) {
        const F value =
            Mul(Silu(Load(gate + r * kPanelCols)), Load(up + r * kPanelCols));
        if (cols >= kPanelCols) {
          Store(value, out);
        } else {
          StoreN(value, out, cols);
        }
      }
    }
  }
}

template <template <bool, bool, bool, bool> typename Panel>
XCACHE_INLINE void SetQuantMatmul(Kernels* table) {
  table->quant_row_tile = 8;
  table->quantize_rows = QuantizeRows;
  table->quant_matmul = QuantMatmul<Panel>;
  table->quant_gate_up = QuantGateUp<Panel>;
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_QUANT_MATMUL_SIMD_H_
