#include "engine/cpu/sequence.h"

#include <utility>

#include "engine/xcache/page.h"

namespace xcache {

CpuCodecHandle::CpuCodecHandle(const Engine* engine,
                               std::unique_ptr<const Codec> codec,
                               std::shared_ptr<const Profile> profile,
                               const Digest& cache_fp)
    : engine_(engine),
      profile_(std::move(profile)),
      codec_(std::move(codec)),
      spec_(codec_->spec().ToString()),
      cache_fp_(cache_fp),
      page_bytes_(PageBytes(codec_->payload_bytes())) {}

CpuSequence::CpuSequence(const CpuCodecHandle& codec, const KvShape& shape,
                         std::shared_ptr<KvArena> arena,
                         std::span<const TokenId> tokens,
                         std::span<const KvBlockRef> blocks)
    : codec_(codec),
      shape_(shape),
      arena_(std::move(arena)),
      tokens_(tokens.begin(), tokens.end()),
      blocks_(blocks.begin(), blocks.end()),
      live_rows_(shape, codec.codec().live_rows()) {}

std::vector<SealedBlock> CpuSequence::TakeSealed() {
  return std::exchange(fresh_, {});
}

int64_t CpuSequence::Truncate(int64_t num_tokens) {
  const int64_t first_live = live_index() * kBlockTokens;
  if (num_tokens < first_live) {
    // The exact rows of a sealed block are gone: back to its start.
    num_tokens -= num_tokens % kBlockTokens;
    const int64_t blocks = num_tokens / kBlockTokens;
    blocks_.resize(static_cast<size_t>(blocks));
    std::erase_if(fresh_, [blocks](const SealedBlock& sealed) {
      return sealed.block_index >= blocks;
    });
  }
  tokens_.resize(static_cast<size_t>(num_tokens));
  return num_tokens;
}

CpuKvBlock& CpuSequence::live() {
  if (live_ == nullptr) live_ = std::make_shared<CpuKvBlock>(shape_, arena_);
  return *live_;
}

void CpuSequence::Append(std::span<const TokenId> tokens) {
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
}

void CpuSequence::FinishSeal(std::string page) {
  SealedBlock sealed;
  sealed.block_index = live_index();
  sealed.page = std::move(page);
  sealed.kv = std::exchange(live_, nullptr);
  blocks_.push_back(sealed.kv);
  fresh_.push_back(std::move(sealed));
}

}  // namespace xcache
