// Bodies of the kernels that keep the sums of cross-layer codecs, X^ of
// engine/xcache/cross_layer.h: rows in FP32 that grow from layer to layer. The
// same bits as the CPU's. One block of threads for each row.
#ifndef XCACHE_ENGINE_CUDA_CROSS_LAYER_KERNELS_H_
#define XCACHE_ENGINE_CUDA_CROSS_LAYER_KERNELS_H_

#include <cstdint>

#include "engine/cuda/device_math.h"
#include "engine/cuda/device_ops.h"
#include "engine/cuda/thread_block.h"
#include "engine/types.h"

namespace xcache::cuda {

// A prediction's scale: a byte in steps of 1/128.
XC_HOST_DEVICE inline float PredictionScale(uint8_t code) {
  return static_cast<float>(code) / 128.0f;
}

template <typename Block>
XC_HOST_DEVICE void ScaleSumsRow(Block& block, const ScaleSumsArgs& args,
                                 int row) {
  const uint8_t* codes = args.payloads[row / kBlockTokens] + args.offset;
  const float scale = PredictionScale(codes[row % kBlockTokens]);
  float* sums = args.sums + static_cast<int64_t>(row) * args.width;
  block.ForThreads([&](int thread) {
    for (int i = thread; i < args.width; i += kThreads) {
      sums[i] = sums[i] * scale;
    }
  });
}

template <typename Block>
XC_HOST_DEVICE void RoundSumsRow(Block& block, const RoundSumsArgs& args,
                                 int row) {
  const int index = row / kBlockTokens;
  const bool counts = row % kBlockTokens >= args.blocks[index].first_row;
  const float* sums = args.sums + static_cast<int64_t>(row) * args.width;
  uint16_t* out = args.out + static_cast<int64_t>(row) * args.width;
  block.ForThreads([&](int thread) {
    for (int i = thread; i < args.width; i += kThreads) {
      if (counts && !IsFinite(sums[i])) args.invalid[index] = 1;
      out[i] = F32ToF16(sums[i]);
    }
  });
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_CUDA_CROSS_LAYER_KERNELS_H_
