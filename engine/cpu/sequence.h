// A live sequence of the CPU engine: token ids, sealed blocks, and the live
// block with the rows that its codec will need. Keeps the books; computes
// nothing.
#ifndef XCACHE_ENGINE_CPU_SEQUENCE_H_
#define XCACHE_ENGINE_CPU_SEQUENCE_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/cpu/kv.h"
#include "engine/engine.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/profile.h"

namespace xcache {

class CpuCodecHandle final : public CodecHandle {
 public:
  // `engine` marks whose it is. `profile` is null for codecs that need none.
  CpuCodecHandle(const Engine* engine, std::unique_ptr<const Codec> codec,
                 std::shared_ptr<const Profile> profile,
                 const Digest& cache_fp);

  std::string_view spec() const override { return spec_; }
  const Digest& cache_fp() const override { return cache_fp_; }
  size_t page_bytes() const override { return page_bytes_; }

  const Codec& codec() const { return *codec_; }
  const Engine* engine() const { return engine_; }

 private:
  const Engine* const engine_;
  const std::shared_ptr<const Profile> profile_;  // outlives codec_
  const std::unique_ptr<const Codec> codec_;
  const std::string spec_;
  const Digest cache_fp_;
  const size_t page_bytes_;
};

class CpuSequence final : public Sequence {
 public:
  CpuSequence(const CpuCodecHandle& codec, const KvShape& shape,
              std::shared_ptr<KvArena> arena, std::span<const TokenId> tokens,
              std::span<const KvBlockRef> blocks);

  const CodecHandle& codec() const override { return codec_; }
  std::span<const TokenId> tokens() const override { return tokens_; }
  std::span<const KvBlockRef> blocks() const override { return blocks_; }
  std::vector<SealedBlock> TakeSealed() override;
  int64_t Truncate(int64_t num_tokens) override;

  const CpuCodecHandle& cpu_codec() const { return codec_; }
  // Rows of the live block that have been forwarded, and its index.
  int live_tokens() const {
    return static_cast<int>(tokens_.size() % kBlockTokens);
  }
  int64_t live_index() const { return static_cast<int64_t>(blocks_.size()); }
  // Sealed block `i`.
  const CpuKvBlock& sealed(size_t i) const {
    return static_cast<const CpuKvBlock&>(*blocks_[i]);
  }
  // The live block's tiles, made when first asked for.
  CpuKvBlock& live();
  LiveBlockRows& live_rows() { return live_rows_; }

  // Appends what a step has forwarded. When that fills the block, FinishSeal
  // follows before the next Append.
  void Append(std::span<const TokenId> tokens);
  // Turns the full live block, whose tiles now hold what `page` gives back,
  // into a sealed one.
  void FinishSeal(std::string page);

 private:
  const CpuCodecHandle& codec_;
  const KvShape shape_;
  const std::shared_ptr<KvArena> arena_;
  std::vector<TokenId> tokens_;
  std::vector<KvBlockRef> blocks_;
  std::shared_ptr<CpuKvBlock> live_;
  LiveBlockRows live_rows_;
  std::vector<SealedBlock> fresh_;  // sealed, not yet taken
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_SEQUENCE_H_
