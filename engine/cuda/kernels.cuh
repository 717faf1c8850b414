// The kernel bodies as CUDA launches them: each finds its place in the grid and
// has its shared memory. For ops.cu alone.
#ifndef XCACHE_ENGINE_CUDA_KERNELS_CUH_
#define XCACHE_ENGINE_CUDA_KERNELS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "engine/device/kernels/attention.h"
#include "engine/device/kernels/cross_layer.h"
#include "engine/device/kernels/dequantize.h"
#include "engine/device/kernels/fused_remat.h"
#include "engine/device/kernels/quantize.h"
#include "engine/device/kernels/quantized_weights.h"
#include "engine/device/kernels/rows.h"
#include "engine/device/kernels/thread_block.h"
#include "engine/device/ops.h"

namespace xcache::cuda {
namespace {

extern __shared__ uint4 dynamic_shared[];

__device__ int BlockIndex() { return static_cast<int>(blockIdx.x); }

__global__ void __launch_bounds__(kThreads) EmbedKernel(EmbedArgs args) {
  DeviceBlock block;
  EmbedRow(block, args, BlockIndex());
}
// Neighbouring blocks of threads share a panel of the matrix.
template <WeightType kType>
__global__ void __launch_bounds__(kThreads)
    QuantizedGemmKernel(QuantizedGemmArgs args) {
  __shared__ QuantizedShared shared;
  const int tiles = NumRowTiles(args.num_rows);
  DeviceBlock block;
  QuantizedGemmPanel<kType>(block, args, BlockIndex() % tiles,
                            BlockIndex() / tiles, shared);
}
using QuantizedGemmFn = void (*)(QuantizedGemmArgs);
// Null for a type that is none.
QuantizedGemmFn QuantizedGemmKernelOf(WeightType type) {
  switch (type) {
    case WeightType::kQ4_0:
      return QuantizedGemmKernel<WeightType::kQ4_0>;
    case WeightType::kQ4_1:
      return QuantizedGemmKernel<WeightType::kQ4_1>;
    case WeightType::kQ5_0:
      return QuantizedGemmKernel<WeightType::kQ5_0>;
    case WeightType::kQ5_1:
      return QuantizedGemmKernel<WeightType::kQ5_1>;
    case WeightType::kQ8_0:
      return QuantizedGemmKernel<WeightType::kQ8_0>;
    case WeightType::kQ4_K:
      return QuantizedGemmKernel<WeightType::kQ4_K>;
    case WeightType::kQ5_K:
      return QuantizedGemmKernel<WeightType::kQ5_K>;
    case WeightType::kQ6_K:
      return QuantizedGemmKernel<WeightType::kQ6_K>;
    case WeightType::kBf16:
      break;
  }
  return nullptr;
}
__global__ void __launch_bounds__(kThreads) UnpackKernel(UnpackArgs args) {
  DeviceBlock block;
  UnpackMatrixRow(block, args, BlockIndex());
}
__global__ void __launch_bounds__(kThreads) RmsNormKernel(RmsNormArgs args) {
  __shared__ float shared[kThreads];
  DeviceBlock block;
  RmsNormRow(block, args, BlockIndex(), shared);
}
__global__ void __launch_bounds__(kThreads) StoreKvKernel(StoreKvArgs args) {
  DeviceBlock block;
  StoreKvRow(block, args, BlockIndex());
}
// Three blocks at a time, at the price of some words in local memory.
template <int kMaxDim>
__global__ void __launch_bounds__(kThreads, kMaxDim <= 128 ? 3 : 1)
    AttendKernel(AttentionArgs args) {
  const int heads = args.layout.n_kv_heads;
  DeviceBlock block;
  AttendChunk<kMaxDim>(block, args, BlockIndex() / heads, BlockIndex() % heads,
                       reinterpret_cast<uint16_t*>(dynamic_shared));
}
__global__ void __launch_bounds__(kThreads) MergeKernel(AttentionArgs args) {
  const int heads = args.layout.n_kv_heads;
  DeviceBlock block;
  MergeChunks(block, args, BlockIndex() / heads, BlockIndex() % heads);
}
__global__ void __launch_bounds__(kThreads) SiluMulKernel(SiluMulArgs args) {
  DeviceBlock block;
  SiluMulRow(block, args, BlockIndex());
}
__global__ void __launch_bounds__(kThreads)
    DecodeTokensKernel(TokenMatrix matrix, DecodeArgs args) {
  __shared__ float shared[kPieceFloats];
  const int pieces = NumPieces(matrix.num_channels);
  DeviceBlock block;
  DecodeTokenPiece(block, matrix, args, BlockIndex() / pieces,
                   BlockIndex() % pieces, shared);
}
__global__ void __launch_bounds__(kThreads)
    DecodeChannelsKernel(ChannelMatrix matrix, DecodeArgs args) {
  const int parts = (matrix.num_channels + kThreads - 1) / kThreads;
  DeviceBlock block;
  DecodeChannelPart(block, matrix, args, BlockIndex() / parts / kOctets,
                    BlockIndex() / parts % kOctets, BlockIndex() % parts);
}
// Neighbouring blocks of threads share a panel of the matrix.
__global__ void __launch_bounds__(kThreads)
    FusedRematKernel(FusedRematArgs args) {
  __shared__ FusedShared shared;
  DeviceBlock block;
  FusedRematPart(block, args, BlockIndex() % args.num_blocks,
                 BlockIndex() / args.num_blocks, shared);
}
__global__ void __launch_bounds__(kThreads)
    ScaleSumsKernel(ScaleSumsArgs args) {
  DeviceBlock block;
  ScaleSumsRow(block, args, BlockIndex());
}
__global__ void __launch_bounds__(kThreads)
    RoundSumsKernel(RoundSumsArgs args) {
  DeviceBlock block;
  RoundSumsRow(block, args, BlockIndex());
}
__global__ void __launch_bounds__(kThreads)
    StoreFinalKernel(StoreFinalArgs args) {
  const int heads = args.layout.n_kv_heads;
  DeviceBlock block;
  StoreFinalHead(block, args, BlockIndex() / heads, BlockIndex() % heads);
}

__global__ void __launch_bounds__(kThreads)
    TransposeKernel(TransposeArgs args) {
  __shared__ float shared[kPieceFloats];
  const int pieces = NumPieces(args.num_channels);
  DeviceBlock block;
  TransposePiece(block, args, BlockIndex() / pieces, BlockIndex() % pieces,
                 shared);
}
__global__ void __launch_bounds__(kThreads) GatherKernel(GatherArgs args) {
  DeviceBlock block;
  GatherRow(block, args, BlockIndex());
}
constexpr int kProductRowParts = kBlockTokens / kProductRows;
__global__ void __launch_bounds__(kThreads)
    ExactProductKernel(ExactProductArgs args) {
  __shared__ float shared[kProductRows * kProductDepth];
  const int parts = (args.width + kThreads - 1) / kThreads;
  DeviceBlock block;
  ExactProductPart(block, args, BlockIndex() / kProductRowParts / parts,
                   BlockIndex() / kProductRowParts % parts,
                   BlockIndex() % kProductRowParts, shared);
}
__global__ void __launch_bounds__(kThreads) PredictKernel(PredictArgs args) {
  __shared__ float shared[2 * kDotSums];
  DeviceBlock block;
  PredictRow(block, args, BlockIndex(), shared);
}
__global__ void __launch_bounds__(kThreads) RangesKernel(QuantizeArgs args) {
  __shared__ float shared[2 * kThreads];
  DeviceBlock block;
  UnitRanges(block, args, BlockIndex() / args.num_units,
             BlockIndex() % args.num_units, shared);
}
__global__ void __launch_bounds__(kThreads) QuantizeKernel(QuantizeArgs args) {
  __shared__ uint8_t codes[kMaxTileRows * kThreads];
  DeviceBlock block;
  QuantizeUnit(block, args, BlockIndex() / args.num_units,
               BlockIndex() % args.num_units, codes);
}

}  // namespace
}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_CUDA_KERNELS_CUH_
