// The table of the codecs' kernels of one instruction set: quantize, pack,
// unpack, entropy coding, products of integers. Every table gives the same
// bits. All functions are thread-safe.
#ifndef XCACHE_ENGINE_KERNELS_CODEC_KERNELS_H_
#define XCACHE_ENGINE_KERNELS_CODEC_KERNELS_H_

#include "engine/kernels/int_matmul.h"
#include "engine/kernels/isa.h"
#include "engine/kernels/pack_bits.h"
#include "engine/kernels/quantize_groups.h"
#include "engine/kernels/rans.h"

namespace xcache {

struct CodecKernels {
  QuantizeTileFn quantize_tile = nullptr;
  TileRangesFn tile_ranges = nullptr;
  AllFiniteFn all_finite = nullptr;

  PackTileFn pack_tile = nullptr;
  UnpackTileFn unpack_tile = nullptr;
  TransposeFn transpose = nullptr;
  HadamardFn hadamard = nullptr;
  ScaleRowsFn scale_rows = nullptr;

  RansDecodeFn rans_decode = nullptr;

  IntMatmulFn int_matmul = nullptr;
  RoundRowFn round_row = nullptr;
};

// REQUIRES: IsaSupported(isa).
const CodecKernels& GetCodecKernels(Isa isa);

// Each of these sets its op's entries. Only the kernels' own files use them.
void AddQuantizeGroupsRef(CodecKernels* table);
void AddPackBitsRef(CodecKernels* table);
void AddRansRef(CodecKernels* table);
void AddIntMatmulRef(CodecKernels* table);
void AddQuantizeGroupsAvx2(CodecKernels* table);
void AddPackBitsAvx2(CodecKernels* table);
void AddRansAvx2(CodecKernels* table);
void AddIntMatmulAvx2(CodecKernels* table);
void AddQuantizeGroupsAvx512(CodecKernels* table);
void AddPackBitsAvx512(CodecKernels* table);
void AddRansAvx512(CodecKernels* table);
void AddIntMatmulAvx512(CodecKernels* table);

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_CODEC_KERNELS_H_
