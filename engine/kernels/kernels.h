// The table of kernels of one instruction set, chosen once at start. Every
// table gives the same bits; they differ in speed only. All functions are
// thread-safe: they touch what their arguments name, and nothing else.
#ifndef XCACHE_ENGINE_KERNELS_KERNELS_H_
#define XCACHE_ENGINE_KERNELS_KERNELS_H_

#include "engine/kernels/attention.h"
#include "engine/kernels/float_matmul.h"
#include "engine/kernels/quant_matmul.h"
#include "engine/kernels/row_ops.h"

namespace xcache {

// isa.h, not included: the files compiled for one instruction set read this
// header, and must not carry code of the standard library or Abseil.
enum class Isa;

struct Kernels {
  Isa isa{};
  // Row tile of quant_matmul and of float_matmul: a caller that splits work by
  // rows loses least at multiples of it.
  int quant_row_tile = 1;
  int float_row_tile = 1;

  QuantizeRowsFn quantize_rows = nullptr;
  QuantMatmulFn quant_matmul = nullptr;
  QuantGateUpFn quant_gate_up = nullptr;
  FloatMatmulFn float_matmul = nullptr;

  RmsNormFn rms_norm = nullptr;
  SiluMulFn silu_mul = nullptr;
  GeluMulFn gelu_mul = nullptr;
  AddFn add = nullptr;
  RopeFn rope = nullptr;
  ToF16Fn to_f16 = nullptr;
  FromF16Fn from_f16 = nullptr;

  AttentionChunkFn attention_chunk = nullptr;
  AttentionMergeFn attention_merge = nullptr;
  AttentionFinishFn attention_finish = nullptr;
};

// REQUIRES: IsaSupported(isa).
const Kernels& GetKernels(Isa isa);

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_KERNELS_H_
