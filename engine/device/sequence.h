// A live sequence of the device engine: token ids, sealed blocks, and the live
// block's memory on the device. Keeps the books; computes nothing.
#ifndef XCACHE_ENGINE_DEVICE_SEQUENCE_H_
#define XCACHE_ENGINE_DEVICE_SEQUENCE_H_

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/common/codec_loader.h"
#include "engine/device/codecs/codec.h"
#include "engine/device/kv.h"
#include "engine/engine.h"
#include "engine/types.h"
#include "engine/xcache/page.h"

namespace xcache::cuda {

class DeviceCodecHandle final : public CodecHandle {
 public:
  // `engine` marks whose it is. `device_codec` is null where the CPU's codec
  // does the work.
  DeviceCodecHandle(const Engine* engine, LoadedCodec loaded,
                    std::unique_ptr<const DeviceCodec> device_codec,
                    const KvShape& shape)
      : engine_(engine),
        loaded_(std::move(loaded)),
        device_codec_(std::move(device_codec)),
        live_rows_(shape, loaded_.codec->live_rows()),
        page_bytes_(PageBytes(loaded_.codec->payload_bytes())) {}

  std::string_view spec() const override { return loaded_.spec; }
  const Digest& cache_fp() const override { return loaded_.cache_fp; }
  size_t page_bytes() const override { return page_bytes_; }

  const Engine* engine() const { return engine_; }
  const Codec& codec() const { return *loaded_.codec; }
  const DeviceCodec* device_codec() const { return device_codec_.get(); }
  const LiveRowsLayout& live_rows() const { return live_rows_; }
  // Whether a block is kept as its payload: all but the first one, whose sinks
  // are in no payload, where there are kernels that read it.
  bool KeepsPayload(RematPolicy remat, int64_t block_index) const {
    return remat == RematPolicy::kStep && device_codec_ != nullptr &&
           block_index > 0;
  }

 private:
  const Engine* const engine_;
  const LoadedCodec loaded_;
  const std::unique_ptr<const DeviceCodec> device_codec_;
  const LiveRowsLayout live_rows_;
  const size_t page_bytes_;
};

class DeviceSequence final : public Sequence {
 public:
  // `live_rows` has live_rows().bytes() of the codec, or is empty.
  DeviceSequence(const DeviceCodecHandle& codec, PoolPiece live_rows,
                 std::span<const TokenId> tokens,
                 std::span<const KvBlockRef> blocks, RematPolicy remat)
      : codec_(codec),
        remat_(remat),
        tokens_(tokens.begin(), tokens.end()),
        blocks_(blocks.begin(), blocks.end()),
        live_rows_(std::move(live_rows)) {}

  const CodecHandle& codec() const override { return codec_; }
  std::span<const TokenId> tokens() const override { return tokens_; }
  std::span<const KvBlockRef> blocks() const override { return blocks_; }
  std::vector<SealedBlock> TakeSealed() override {
    return std::exchange(fresh_, {});
  }
  int64_t Truncate(int64_t num_tokens) override {
    if (num_tokens < live_index() * kBlockTokens) {
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

  const DeviceCodecHandle& handle() const { return codec_; }
  RematPolicy remat() const { return remat_; }
  int live_tokens() const {
    return static_cast<int>(tokens_.size() % kBlockTokens);
  }
  int64_t live_index() const { return static_cast<int64_t>(blocks_.size()); }
  uint16_t* live_tiles() const {
    return static_cast<uint16_t*>(live_tiles_.get());
  }
  void set_live_tiles(PoolPiece tiles) { live_tiles_ = std::move(tiles); }
  PoolPiece TakeLiveTiles() { return std::exchange(live_tiles_, PoolPiece()); }
  float* live_rows() const { return static_cast<float*>(live_rows_.get()); }

  // Appends what a step has forwarded. When that fills the block, FinishSeal
  // follows before the next Append.
  void Append(std::span<const TokenId> tokens) {
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  }
  void FinishSeal(std::string page, std::shared_ptr<const DeviceKvBlock> kv) {
    SealedBlock sealed;
    sealed.block_index = live_index();
    sealed.page = std::move(page);
    sealed.kv = std::move(kv);
    blocks_.push_back(sealed.kv);
    fresh_.push_back(std::move(sealed));
  }

 private:
  const DeviceCodecHandle& codec_;
  const RematPolicy remat_;
  std::vector<TokenId> tokens_;
  std::vector<KvBlockRef> blocks_;
  PoolPiece live_tiles_, live_rows_;
  std::vector<SealedBlock> fresh_;  // sealed, not yet taken
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_SEQUENCE_H_
