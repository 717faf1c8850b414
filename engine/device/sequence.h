// A live sequence of the device engine: the live block's memory on the device.
// Computes nothing.
#ifndef XCACHE_ENGINE_DEVICE_SEQUENCE_H_
#define XCACHE_ENGINE_DEVICE_SEQUENCE_H_

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "engine/common/codec_loader.h"
#include "engine/common/kv_shape.h"
#include "engine/common/sequence.h"
#include "engine/device/codecs/codec.h"
#include "engine/device/kv.h"
#include "engine/engine.h"
#include "engine/types.h"

namespace xcache::cuda {

class DeviceCodecHandle final : public EngineCodec {
 public:
  // `device_codec` is null where the CPU's codec does the work.
  DeviceCodecHandle(const Engine* engine, LoadedCodec loaded,
                    std::unique_ptr<const DeviceCodec> device_codec,
                    const KvShape& shape)
      : EngineCodec(engine, std::move(loaded), shape),
        device_codec_(std::move(device_codec)) {}

  const DeviceCodec* device_codec() const { return device_codec_.get(); }
  // Whether a block is kept as its payload: all but the first one, whose sinks
  // are in no payload, where there are kernels that read it.
  bool KeepsPayload(RematPolicy remat, int64_t block_index) const {
    return remat == RematPolicy::kStep && device_codec_ != nullptr &&
           block_index > 0;
  }

 private:
  const std::unique_ptr<const DeviceCodec> device_codec_;
};

class DeviceSequence final : public EngineSequence {
 public:
  // `live_rows` has live_rows().bytes() of the codec, or is empty.
  DeviceSequence(const DeviceCodecHandle& codec, PoolPiece live_rows,
                 std::span<const TokenId> tokens,
                 std::span<const KvBlockRef> blocks, RematPolicy remat)
      : EngineSequence(codec, tokens, blocks),
        remat_(remat),
        live_rows_(std::move(live_rows)) {}

  const DeviceCodecHandle& handle() const {
    return static_cast<const DeviceCodecHandle&>(codec());
  }
  RematPolicy remat() const { return remat_; }
  uint16_t* live_tiles() const {
    return static_cast<uint16_t*>(live_tiles_.get());
  }
  void set_live_tiles(PoolPiece tiles) { live_tiles_ = std::move(tiles); }
  PoolPiece TakeLiveTiles() { return std::exchange(live_tiles_, PoolPiece()); }
  float* live_rows() const { return static_cast<float*>(live_rows_.get()); }

  void FinishSeal(std::string page, std::shared_ptr<const DeviceKvBlock> kv) {
    AddSealed(std::move(page), std::move(kv));
  }

 private:
  const RematPolicy remat_;
  PoolPiece live_tiles_, live_rows_;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_SEQUENCE_H_
