// A live sequence of the CPU engine: the live block with the rows that its
// codec will need. Computes nothing.
#ifndef XCACHE_ENGINE_CPU_SEQUENCE_H_
#define XCACHE_ENGINE_CPU_SEQUENCE_H_

#include <memory>
#include <span>
#include <string>
#include <utility>

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

  // The live block's tiles, made when first asked for.
  CpuKvBlock& live() {
    if (live_ == nullptr) live_ = std::make_shared<CpuKvBlock>(shape_, arena_);
    return *live_;
  }
  LiveBlockRows& live_rows() { return live_rows_; }

  // Turns the full live block, whose tiles now hold what `page` gives back,
  // into a sealed one.
  void FinishSeal(std::string page) {
    AddSealed(std::move(page), std::exchange(live_, nullptr));
  }

 private:
  const KvShape shape_;
  const std::shared_ptr<KvArena> arena_;
  std::shared_ptr<CpuKvBlock> live_;
  LiveBlockRows live_rows_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_SEQUENCE_H_
