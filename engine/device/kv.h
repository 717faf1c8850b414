// What the device engine keeps of a block: its K/V tiles, or in their place the
// payload of its page, in the pool; and the rows that a live block's codec will
// need. Memory and layout only.
#ifndef XCACHE_ENGINE_DEVICE_KV_H_
#define XCACHE_ENGINE_DEVICE_KV_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "engine/common/kv_shape.h"
#include "engine/device/memory.h"
#include "engine/device/ops.h"
#include "engine/engine.h"
#include "engine/xcache/codec.h"

namespace xcache::cuda {

inline KvLayout LayoutOf(const KvShape& shape) {
  return {shape.num_layers, shape.n_kv_heads, shape.head_dim};
}
// Elements of a layer's tiles.
inline int64_t LayerStride(const KvShape& shape) {
  return 2 * static_cast<int64_t>(shape.tile_elements()) * shape.n_kv_heads;
}

class DeviceKvBlock final : public KvBlock {
 public:
  // One of the two is empty: the block is kept as tiles, or as its payload and
  // rematerialized in each step. `bytes` are the other one's.
  DeviceKvBlock(PoolPiece tiles, PoolPiece payload, size_t bytes)
      : bytes_(bytes), tiles_(std::move(tiles)), payload_(std::move(payload)) {}

  size_t bytes() const override { return bytes_; }

  uint16_t* tiles() const { return static_cast<uint16_t*>(tiles_.get()); }
  const uint8_t* payload() const {
    return static_cast<const uint8_t*>(payload_.get());
  }

 private:
  const size_t bytes_;
  PoolPiece tiles_, payload_;
};

// Where the live rows are in their piece of memory: those that a codec's
// live_rows() asks for, [layers][64][width] FP32 each, one after another.
class LiveRowsLayout {
 public:
  LiveRowsLayout(const KvShape& shape, unsigned live_rows)
      : shape_(shape), live_rows_(live_rows) {}

  size_t bytes() const { return (At(kParts)) * sizeof(float); }
  // Null where the codec does not ask. `base` may be null where bytes() is 0.
  float* unit_x(float* base) const { return Part(base, 0); }
  float* rms(float* base) const { return Part(base, 1); }
  float* k_pre(float* base) const { return Part(base, 2); }
  float* v_pre(float* base) const { return Part(base, 3); }

 private:
  static constexpr int kParts = 4;

  size_t Width(int part) const {
    const bool asked = part == 0   ? (live_rows_ & kLiveUnitX) != 0
                       : part == 1 ? (live_rows_ & kLiveRms) != 0
                                   : (live_rows_ & kLiveKvPre) != 0;
    if (!asked) return 0;
    return static_cast<size_t>(part == 0   ? shape_.d_model
                               : part == 1 ? 1
                                           : shape_.kv_dim());
  }
  size_t At(int part) const {
    size_t at = 0;
    for (int i = 0; i < part; ++i) {
      at += static_cast<size_t>(shape_.num_layers) * kBlockTokens * Width(i);
    }
    return at;
  }
  float* Part(float* base, int part) const {
    return Width(part) == 0 ? nullptr : base + At(part);
  }

  KvShape shape_;
  unsigned live_rows_;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KV_H_
