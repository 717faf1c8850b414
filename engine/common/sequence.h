// What both engines keep of an opened codec and of a live sequence: token ids,
// sealed blocks, pages that nobody has taken yet. Keeps the books; computes
// nothing. Where a live block's rows are is each engine's own business.
#ifndef XCACHE_ENGINE_COMMON_SEQUENCE_H_
#define XCACHE_ENGINE_COMMON_SEQUENCE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/common/codec_loader.h"
#include "engine/common/kv_shape.h"
#include "engine/common/live_rows.h"
#include "engine/engine.h"
#include "engine/types.h"
#include "engine/xcache/codec.h"

namespace xcache {

class EngineCodec : public CodecHandle {
 public:
  // `engine` marks whose it is.
  EngineCodec(const Engine* engine, LoadedCodec loaded, const KvShape& shape);

  std::string_view spec() const override { return loaded_.spec; }
  const Digest& cache_fp() const override { return loaded_.cache_fp; }
  size_t page_bytes() const override { return page_bytes_; }
  int exact_window() const override { return loaded_.exact_window; }

  const Engine* engine() const { return engine_; }
  const Codec& codec() const { return *loaded_.codec; }
  const LiveRowsLayout& live_rows() const { return live_rows_; }

 private:
  const Engine* const engine_;
  const LoadedCodec loaded_;
  const LiveRowsLayout live_rows_;
  const size_t page_bytes_;
};

class EngineSequence : public Sequence {
 public:
  EngineSequence(const EngineCodec& codec, std::span<const TokenId> tokens,
                 std::span<const KvBlockRef> blocks)
      : codec_(codec),
        tokens_(tokens.begin(), tokens.end()),
        blocks_(blocks.begin(), blocks.end()) {}

  const EngineCodec& codec() const override { return codec_; }
  std::span<const TokenId> tokens() const override { return tokens_; }
  std::span<const KvBlockRef> blocks() const override { return blocks_; }
  std::vector<SealedBlock> TakeSealed() override;
  int64_t Truncate(int64_t num_tokens) override;

  // Rows of the live block that have been forwarded, and the index of the first
  // block that is not sealed.
  int live_tokens() const {
    return static_cast<int>(tokens_.size() % kBlockTokens);
  }
  int64_t live_index() const { return static_cast<int64_t>(blocks_.size()); }

  // Appends what a step has forwarded. When that fills the block, its page is
  // made before the next Append.
  void Append(std::span<const TokenId> tokens) {
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  }

 protected:
  // The block after the sealed ones is `kv`, which holds what `page` gives
  // back.
  void AddSealed(std::string page, KvBlockRef kv);

 private:
  const EngineCodec& codec_;
  std::vector<TokenId> tokens_;
  std::vector<KvBlockRef> blocks_;
  std::vector<SealedBlock> fresh_;  // sealed, not yet taken
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_COMMON_SEQUENCE_H_
