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

  // The tiles of the window's blocks: those with a page, and the live one, made
  // when first asked for.
  std::span<const std::shared_ptr<CpuKvBlock>> live() {
    if (live_.size() == pages_.size()) {
      live_.push_back(std::make_shared<CpuKvBlock>(shape_, arena_));
    }
    return live_;
  }
  // Of the window's blocks.
  CpuKvBlock& block(size_t i) { return *live_[i]; }
  LiveBlockRows& live_rows() { return live_rows_; }
  int64_t Truncate(int64_t num_tokens) override {
    num_tokens = EngineSequence::Truncate(num_tokens);
    const auto full = static_cast<size_t>(
        std::max<int64_t>(0, num_tokens / kBlockTokens - live_index()));
    pages_.resize(std::min(pages_.size(), full));
    live_.resize(std::min(live_.size(), pages_.size() + 1));
    return num_tokens;
  }

  // The block that is full and has no page yet.
  CpuKvBlock& full_block() { return *live_.back(); }
  int64_t full_index() const { return live_index() + std::ssize(pages_); }
  // The page of the full live block. True: its window is full, and is to be
  // sealed.
  bool AddPage(std::string page) {
    pages_.push_back(std::move(page));
    return std::ssize(pages_) * kBlockTokens == codec().exact_window();
  }
  std::span<const std::string> pages() const { return pages_; }
  // Turns the window's blocks, whose tiles now hold what their pages give back,
  // into sealed ones.
  void FinishSeal() {
    for (size_t i = 0; i < pages_.size(); ++i) {
      AddSealed(std::move(pages_[i]), std::move(live_[i]));
    }
    pages_.clear();
    live_.clear();
  }

 private:
  const KvShape shape_;
  const std::shared_ptr<KvArena> arena_;
  std::vector<std::shared_ptr<CpuKvBlock>> live_;
  std::vector<std::string> pages_;  // of the window's full blocks
  LiveBlockRows live_rows_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_SEQUENCE_H_
