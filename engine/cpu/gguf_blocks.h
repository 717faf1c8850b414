// Reads 32 weights of a GGUF tensor as codes with a scale and a minimum: what
// PackedMatrix takes. Knows the block layouts of ggml's quantized types and
// nothing of what the weights are for.
#ifndef XCACHE_ENGINE_CPU_GGUF_BLOCKS_H_
#define XCACHE_ENGINE_CPU_GGUF_BLOCKS_H_

#include <cstdint>
#include <optional>

#include "engine/kernels/packed.h"
#include "engine/model/gguf.h"

namespace xcache {

// How weights of this type are kept; nullopt for types that are not quantized.
std::optional<QuantFormat> PackedFormatOf(GgufType type);

// Weights [32 * block, 32 * block + 32) of the row at `row`, whose type is any
// for which PackedFormatOf has an answer. Exact.
void ReadWeightBlock(GgufType type, const uint8_t* row, int block,
                     WeightBlock* out);

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_GGUF_BLOCKS_H_
