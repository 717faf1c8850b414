// Scalar reference of the quantized product: the oracle of the tests.
#include <cmath>
#include <cstring>

#include "engine/kernels/isa_tables.h"
#include "engine/kernels/scalar_math.h"

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
      float amax = 0.0f;
      for (int i = 0; i < kQuantBlock; ++i) {
        const float magnitude = std::fabs(in[i]);
        if (magnitude > amax) amax = magnitude;
      }
      const bool tiny = amax < kQuantTiny;
      const float scale = tiny ? 0.0f : amax / 127.0f;
      const float inverse = tiny ? 0.0f : 127.0f / amax;
      int sum[2] = {};
      for (int i = 0; i < kQuantBlock; ++i) {
        float code = (in[i] * inverse + kRoundMagic) - kRoundMagic;
        code = code < 127.0f ? code : 127.0f;
        code = code > -127.0f ? code : -127.0f;
        codes[b * kQuantBlock + i] = static_cast<int8_t>(code);
        sum[i / 16] += codes[b * kQuantBlock + i];
      }
      scales[b] = scale;
      scaled_sums[b] = scale * static_cast<float>(sum[0] + sum[1]);
      sums[2 * b] = static_cast<int16_t>(sum[0]);
      sums[2 * b + 1] = static_cast<int16_t>(sum[1]);
    }
  }
}

float HalfAt(const uint8_t* scales, int index) {
  uint16_t half;
  std::memcpy(&half, scales + index * 2, 2);
  return F16ToF32(half);
}

// One output: activation row `base` times weight row `n`.
float Dot(const QuantMatrix& w, const uint8_t* base, int n) {
  const QuantFormat& f = w.format;
  const int num_blocks = w.cols / kQuantBlock;
  const int8_t* codes = reinterpret_cast<const int8_t*>(base);
  const float* s = reinterpret_cast<const float*>(base + w.cols);
  const uint8_t* panel = w.data + n / kPanelCols * w.panel_bytes;
  const uint8_t* panel_scales = panel + num_blocks * QuantCodeBytes(f);
  const int c = n % kPanelCols;
  const int group = f.factors != QuantFactors::kNone ? kSuperBlocks : 1;
  float acc = 0.0f;
  for (int b = 0; b < num_blocks; ++b) {
    int dot[2] = {}, sum[2] = {};
    for (int k = 0; k < kQuantBlock; ++k) {
      const int a = codes[b * kQuantBlock + k];
      const int code = QuantCodeAt(f.bits, panel + b * QuantCodeBytes(f), c, k);
      dot[k / 16] += a * QuantValue(f, code);
      sum[k / 16] += a;
    }
    const uint8_t* scales = panel_scales + b / group * QuantScaleBytes(f);
    const QuantFactorPair by = QuantFactorsAt(f, scales, b % group, c);
    float d = HalfAt(scales, c);
    float m = f.has_min ? HalfAt(scales, kPanelCols + c) : 0.0f;
    if (f.factors == QuantFactors::kOf16) {
      for (int h = 0; h < 2; ++h) dot[h] *= by.x[h], sum[h] *= by.y[h];
    } else {
      d *= static_cast<float>(by.x[0]);
      m *= static_cast<float>(by.y[0]);
    }
    acc = std::fma(static_cast<float>(dot[0] + dot[1]), d * s[b], acc);
    if (f.has_min) {
      acc = std::fma(m, s[b] * static_cast<float>(sum[0] + sum[1]), acc);
    }
  }
  return acc;
}

int LastCol(int rows, int last_panel) {
  const int end = last_panel * kPanelCols;
  return end < rows ? end : rows;
}

void QuantMatmul(const QuantMatmulArgs& args, int first, int last) {
  for (int row = 0; row < args.num_rows; ++row) {
    const uint8_t* a = args.a.data + row * args.a.stride;
    float* out = args.out + row * args.out_stride;
    for (int n = first * kPanelCols; n < LastCol(args.w.rows, last); ++n) {
      const float acc = Dot(args.w, a, n);
      out[n] = args.epilogue == Epilogue::kAdd ? out[n] + acc : acc;
    }
  }
}

void QuantGateUp(const QuantGateUpArgs& args, int first, int last) {
  for (int row = 0; row < args.num_rows; ++row) {
    const uint8_t* a = args.a.data + row * args.a.stride;
    float* out = args.out + row * args.out_stride;
    for (int n = first * kPanelCols; n < LastCol(args.gate.rows, last); ++n) {
      const float gate = Dot(args.gate, a, n);
      out[n] =
          (args.activation == Activation::kSilu ? Silu(gate) : Gelu(gate)) *
          Dot(args.up, a, n);
    }
  }
}

}  // namespace

void AddQuantMatmulRef(Kernels* table) {
  table->quant_row_tile = 1;
  table->quantize_rows = QuantizeRows;
  table->quant_matmul = QuantMatmul;
  table->quant_gate_up = QuantGateUp;
}

}  // namespace xcache
