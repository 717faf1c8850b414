// A live sequence of the CPU engine: the blocks of the window at hand, and the
// rows of the live one, the last, that its codec will need. Computes nothing.
#ifndef XCACHE_ENGINE_CPU_SEQUENCE_H_
#define XCACHE_ENGINE_CPU_SEQUENCE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/common/sequence.h"
#include "engine/cpu/kv.h"
#include "engine/engine.h"

namespace xcache {

class CpuSequence final : public EngineSequence {
 public:
  CpuSequence(const EngineCodec& codec, const KvShape& shape,
              std::shared_ptr<KvArena> arena, std::span<const TokenId> tokens,
              std::span<const KvBlockRef> blocks)
      : EngineSequence(codec, tokens, blocks),
        shape_(shape),
        arena_(std::move(arena)),
        live_rows_(codec.live_rows()) {}

  // The exact tiles of the window's blocks: those that have a page, and the
  // live one, made when first asked for.
  std::span<const std::shared_ptr<CpuKvBlock>> live() {
    if (live_.size() == paged_.size()) {
      live_.push_back(std::make_shared<CpuKvBlock>(shape_, arena_));
    }
    return live_;
  }
  LiveBlockRows& live_rows() { return live_rows_; }
  int64_t Truncate(int64_t num_tokens) override {
    num_tokens = EngineSequence::Truncate(num_tokens);
    const auto full = static_cast<size_t>(
        std::max<int64_t>(0, num_tokens / kBlockTokens - live_index()));
    paged_.resize(std::min(paged_.size(), full));
    live_.resize(std::min(live_.size(), paged_.size() + 1));
    return num_tokens;
  }

  // The live block is full. Its tiles, and those that what its page gives back
  // is to be written into: the same where its window has no other block, else a
  // copy.
  struct Seal {
    int64_t index;
    const CpuKvBlock& exact;
    CpuKvBlock& sealed;
  };
  Seal BeginSeal() {
    const std::shared_ptr<CpuKvBlock>& exact = live_.back();
    const int64_t index = live_index() + std::ssize(paged_);
    paged_.push_back({"", codec().exact_window() == kBlockTokens
                              ? exact
                              : std::make_shared<CpuKvBlock>(*exact)});
    return {index, *exact, *paged_.back().kv};
  }
  // They are written, and this is the page. With the last one of the window all
  // its blocks are sealed.
  void FinishSeal(std::string page) {
    paged_.back().page = std::move(page);
    if (std::ssize(paged_) * kBlockTokens < codec().exact_window()) return;
    for (Paged& block : paged_) {
      AddSealed(std::move(block.page), std::move(block.kv));
    }
    paged_.clear();
    live_.clear();
  }

 private:
  const KvShape shape_;
  const std::shared_ptr<KvArena> arena_;
  std::vector<std::shared_ptr<CpuKvBlock>> live_;
  // Of the window's full blocks, while it is not full.
  struct Paged {
    std::string page;
    std::shared_ptr<CpuKvBlock> kv;
  };
  std::vector<Paged> paged_;
  LiveBlockRows live_rows_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_SEQUENCE_H_
