// The entropy-coded part of a payload of xquant-tc: the step classes of 64
// tokens and the coefficients of all groups, and back. PAGE_FORMAT.md has the
// bytes. Knows nothing of what a coefficient means.
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

// The symbols of a block.
struct BlockSymbols {
  // Step classes, in [0, kNumSteps); those of tokens that are not coded are
  // kUncodedClass.
  std::array<uint32_t, kRansLanes> classes{};
  // Of each group: [channels][kRansLanes]; 0 where a token is not coded.
  std::vector<std::vector<int16_t>> groups;
};

// `first_lane` tokens are not coded. Appends to `out`.
// REQUIRES: groups are as wide as `models` says.
void EncodeSymbols(const SymbolTables& tables,
                   std::span<const ContextModel> models, int first_lane,
                   const BlockSymbols& symbols, std::vector<uint8_t>* out);

// INVALID_ARGUMENT unless `bytes` are what EncodeSymbols made of some symbols.
absl::Status DecodeSymbols(const SymbolTables& tables,
                           std::span<const ContextModel> models, int first_lane,
                           const CodecKernels& kernels,
                           std::span<const uint8_t> bytes,
                           BlockSymbols* symbols);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_TRANSFORM_SYMBOL_CODER_H_
