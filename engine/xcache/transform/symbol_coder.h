// The entropy-coded part of a payload of xquant-tc: the step classes of 64
// tokens, the coefficients of all groups and corrections, and back.
// PAGE_FORMAT.md has the bytes. Knows nothing of what a coefficient means.
#ifndef XCACHE_ENGINE_XCACHE_TRANSFORM_SYMBOL_CODER_H_
#define XCACHE_ENGINE_XCACHE_TRANSFORM_SYMBOL_CODER_H_

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/kernels/codec_kernels.h"
#include "engine/xcache/transform/context_model.h"
#include "engine/xcache/transform/symbol_tables.h"

namespace xcache {

// What is added to some rows of a layer, where the groups' coefficients leave
// too much out.
struct LayerCorrection {
  uint32_t layer = 0;
  // The level of magnitude of each row's values, or kNoCorrection.
  std::array<uint8_t, kRansLanes> levels{};
  std::vector<int16_t> values;  // [2 k][kRansLanes], 0 where there is none
};
inline constexpr uint8_t kNoCorrection = 255;

// The symbols of a block.
struct BlockSymbols {
  // Step classes, in [0, kNumSteps); those of tokens that are not coded are
  // kUncodedClass.
  std::array<uint32_t, kRansLanes> classes{};
  // Of each group: [channels][kRansLanes]; 0 where a token is not coded.
  std::vector<std::vector<int16_t>> groups;
  std::vector<LayerCorrection> corrections;  // in rising order of layers
};

// `first_lane` tokens are not coded. Appends to `out`.
// REQUIRES: groups are as wide as `models` says.
void EncodeSymbols(const SymbolTables& tables,
                   std::span<const ContextModel> models, int first_lane,
                   const BlockSymbols& symbols, std::vector<uint8_t>* out);

// Layers 1 .. num_layers - 1 may have corrections, of so many latents.
struct CorrectionShape {
  uint32_t num_layers = 0;
  uint32_t latents = 0;
};

// INVALID_ARGUMENT unless `bytes` are what EncodeSymbols made of some symbols.
absl::Status DecodeSymbols(const SymbolTables& tables,
                           std::span<const ContextModel> models,
                           CorrectionShape corrections, int first_lane,
                           const CodecKernels& kernels,
                           std::span<const uint8_t> bytes,
                           BlockSymbols* symbols);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_TRANSFORM_SYMBOL_CODER_H_
