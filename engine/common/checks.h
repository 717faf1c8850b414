// What every engine checks of its callers' arguments, and what it says of its
// model, whatever the device.
#ifndef XCACHE_ENGINE_COMMON_CHECKS_H_
#define XCACHE_ENGINE_COMMON_CHECKS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/sha256.h"
#include "engine/engine.h"
#include "engine/model/model.h"

namespace xcache {

// All of a ModelInfo but device, numerics_id and weight_bytes.
ModelInfo DescribeModel(const Model& model);

// UNIMPLEMENTED: the model computes what the forward passes that are not the
// CPU engine's do not: norms of q and k or of what a layer adds, attention that
// slides, a GELU gate. `who` refuses it.
absl::Status CheckIsPlainDecoder(const Model& model, std::string_view who);

// INVALID_ARGUMENT: an id outside [0, vocab_size).
absl::Status CheckTokenIds(std::span<const TokenId> tokens, int vocab_size);
// INVALID_ARGUMENT unless `tokens` can be the prefix that the blocks hold.
absl::Status CheckPrefix(const ModelInfo& info, std::span<const TokenId> tokens,
                         size_t num_blocks);
// INVALID_ARGUMENT unless the codec is of this engine.
absl::Status CheckCodec(const Engine& engine, const CodecHandle& codec);
// INVALID_ARGUMENT unless all are blocks of the engine whose blocks are Blocks.
template <typename Block>
absl::Status CheckBlocks(std::span<const KvBlockRef> blocks) {
  for (const KvBlockRef& block : blocks) {
    if (dynamic_cast<const Block*>(block.get()) == nullptr) {
      return absl::InvalidArgumentError("a block of another engine");
    }
  }
  return absl::OkStatus();
}
// INVALID_ARGUMENT unless a step may append each item's tokens to its sequence,
// which is of this engine and in one item alone.
absl::Status CheckStep(const Engine& engine, std::span<const StepItem> items);

// What a sequence may come to take of the host's memory, beside itself and its
// rows: token ids and block references up to the context's end, in vectors that
// may have doubled.
size_t BookBytes(const ModelInfo& info);

// Checks a page against what it should hold and returns its payload. DATA_LOSS
// says what differs.
absl::StatusOr<std::span<const uint8_t>> CheckPage(
    const Digest& cache_fp, int64_t block_index,
    std::span<const TokenId> tokens, std::string_view page);

}  // namespace xcache

#endif  // XCACHE_ENGINE_COMMON_CHECKS_H_
