// The two directions of the X-cache on the CPU: a full live block becomes a
// page, and a page becomes the K/V tiles of a block. Sealing ends with
// rematerializing the page it made, by the very code that a resume runs, so
// that live and resumed sequences read the same bits.
#ifndef XCACHE_ENGINE_CPU_SEAL_H_
#define XCACHE_ENGINE_CPU_SEAL_H_

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cpu_forward.h"
#include "engine/cpu_kv.h"
#include "engine/cpu_sequence.h"

namespace xcache {

// Makes the page of block `block_index` from its exact rows, then overwrites
// its tiles, except for the sinks', by what the page gives back. INTERNAL: a
// layer's input is not finite. Thread-safe for different blocks.
absl::StatusOr<std::string> SealBlock(const CpuForward& forward,
                                      const CpuCodecHandle& codec,
                                      int64_t block_index,
                                      std::span<const TokenId> tokens,
                                      LiveBlockRows& rows, CpuKvBlock& block);

// Checks a page against what it should hold and returns its payload. DATA_LOSS
// says what differs.
absl::StatusOr<std::span<const uint8_t>> CheckPage(
    const CpuCodecHandle& codec, int64_t block_index,
    std::span<const TokenId> tokens, std::string_view page);

// Writes what a payload gives back into the tiles; those of the sinks, rows 0
// to 3 of block 0, are left alone. DATA_LOSS: the codec refuses the payload.
// Thread-safe for different blocks.
absl::Status RematBlock(const CpuForward& forward, const CpuCodecHandle& codec,
                        int64_t block_index, std::span<const uint8_t> payload,
                        CpuKvBlock& block);

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_SEAL_H_
