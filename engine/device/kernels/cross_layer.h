// Bodies of the kernels that keep the sums of cross-layer codecs, X^ of
// engine/xcache/cross_layer.h: rows in FP32 that grow from layer to layer. The
// same bits as the CPU's. One block of threads for each row.
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_CROSS_LAYER_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_CROSS_LAYER_H_

#include <cstdint>

#include "engine/device/kernels/math.h"
#include "engine/device/kernels/thread_block.h"
#include "engine/device/ops.h"
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

XC_HOST_DEVICE inline uint8_t PredictionCode(float scale) {
  // Not a number, where rows are zero: predicts nothing.
  if (!(scale > 0.0f)) return 0;
  const float steps = scale * 128.0f;
  return static_cast<uint8_t>((steps < 255.0f ? steps : 255.0f) + 0.5f);
}

// Sums of a dot product, each of every 16th element: the CPU's order.
inline constexpr int kDotSums = 16;

// `shared`: 2 * kDotSums floats.
template <typename Block>
XC_HOST_DEVICE void PredictRow(Block& block, const PredictArgs& args, int row,
                               float* shared) {
  const int index = row / kBlockTokens;
  const int token = row % kBlockTokens;
  const SealSource& source = args.sources[index];
  const bool counts = token >= source.first_row;
  const float* x = source.rows + args.layer_offset +
                   static_cast<int64_t>(token) * args.width;
  float* sums = args.sums + static_cast<int64_t>(row) * args.width;
  float* out = args.out + static_cast<int64_t>(row) * args.width;
  float wanted = 0.0f;
  if (args.kind == PredictionKind::kResidual && counts) {
    const float* rms = args.rms[index].rows + args.layer * kBlockTokens + token;
    wanted = rms[-kBlockTokens] / rms[0];
  }
  if (args.kind == PredictionKind::kFit) {
    // <x, sums> and <sums, sums>.
    block.ForThreads([&](int thread) {
      if (thread >= 2 * kDotSums || !counts) return;
      const float* a = thread < kDotSums ? x : sums;
      float sum = 0.0f;
      for (int i = thread % kDotSums; i < args.width; i += kDotSums) {
        sum += a[i] * sums[i];
      }
      shared[thread] = sum;
    });
    float dot = 0.0f, power = 0.0f;
    for (int i = 0; i < kDotSums && counts; ++i) {
      dot += shared[i];
      power += shared[kDotSums + i];
    }
    wanted = dot / power;
  }
  const uint8_t code = counts ? PredictionCode(wanted) : uint8_t{0};
  const float scale =
      args.kind == PredictionKind::kUnit ? 1.0f : PredictionScale(code);
  uint8_t* codes = source.payload + args.payload_offset;
  block.ForThreads([&](int thread) {
    if (thread == 0 && args.kind != PredictionKind::kUnit) codes[token] = code;
    for (int i = thread; i < args.width; i += kThreads) {
      const float value = counts ? x[i] : 0.0f;
      if (!IsFinite(value)) args.invalid[index] = 1;
      const float predicted = counts ? sums[i] * scale : 0.0f;
      sums[i] = predicted;
      out[i] = value - predicted;
    }
  });
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_CROSS_LAYER_H_
