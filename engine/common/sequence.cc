#include "engine/common/sequence.h"

#include <utility>

#include "engine/xcache/page.h"

namespace xcache {

EngineCodec::EngineCodec(const Engine* engine, LoadedCodec loaded,
                         const KvShape& shape)
    : engine_(engine),
      loaded_(std::move(loaded)),
      live_rows_(shape, loaded_.codec->live_rows()),
      page_bytes_(PageBytes(loaded_.codec->expected_payload_bytes())) {}

std::vector<SealedBlock> EngineSequence::TakeSealed() {
  return std::exchange(fresh_, {});
}

int64_t EngineSequence::Truncate(int64_t num_tokens) {
  // The exact rows of a sealed block are gone: back to its start.
  if (num_tokens < live_index() * kBlockTokens) {
    num_tokens -= num_tokens % kBlockTokens;
  }
  num_tokens = RowsToGoOnFrom(codec_.engine()->info(), blocks_, num_tokens);
  if (num_tokens < live_index() * kBlockTokens) {
    const int64_t blocks = num_tokens / kBlockTokens;
    blocks_.resize(static_cast<size_t>(blocks));
    std::erase_if(fresh_, [blocks](const SealedBlock& sealed) {
      return sealed.block_index >= blocks;
    });
  }
  tokens_.resize(static_cast<size_t>(num_tokens));
  return num_tokens;
}

void EngineSequence::AddSealed(std::string page, KvBlockRef kv) {
  blocks_.push_back(kv);
  fresh_.push_back({live_index() - 1, std::move(page), std::move(kv)});
}

}  // namespace xcache
