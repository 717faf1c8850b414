// The two directions of the X-cache on the CPU: a full live block becomes a
// page, and a page becomes the K/V tiles of a block. Sealing ends with
// rematerializing the page it made, by the very code that a resume runs, so
// that live and resumed sequences read the same bits.
#ifndef XCACHE_ENGINE_CPU_SEAL_H_
#define XCACHE_ENGINE_CPU_SEAL_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "engine/cpu/forward.h"
#include "engine/cpu/kv.h"
#include "engine/cpu/sequence.h"
#include "engine/xcache/codec.h"

namespace xcache {

// Encodes layers `range` of a full block, whose ids are `tokens`, from its
// exact rows into `payload`, then writes what that gives back over the tiles of
// `seal.sealed`, except for the sinks'. INTERNAL: a layer's input is not
// finite. Thread-safe for different blocks and ranges.
absl::Status SealBlock(const CpuForward& forward, const EngineCodec& codec,
                       const CpuSequence::Seal& seal, LayerRange range,
                       std::span<const TokenId> tokens, LiveBlockRows& rows,
                       std::span<uint8_t> payload);
// The same of all layers, with the work on this one block spread by `parallel`
// where it is not null.
absl::Status SealWholeBlock(const CpuForward& forward, const EngineCodec& codec,
                            const CpuSequence::Seal& seal,
                            std::span<const TokenId> tokens,
                            LiveBlockRows& rows, std::span<uint8_t> payload,
                            const ParallelForFn& parallel);

// Writes what layers `range` of a payload give back into the tiles; those of
// the sinks, rows 0 to 3 of block 0, are left alone. DATA_LOSS: the codec
// refuses the payload. Thread-safe for different blocks and ranges.
absl::Status RematBlock(const CpuForward& forward, const EngineCodec& codec,
                        int64_t block_index, std::span<const TokenId> tokens,
                        LayerRange range, std::span<const uint8_t> payload,
                        CpuKvBlock& block);

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_SEAL_H_
