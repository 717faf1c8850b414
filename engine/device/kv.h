// What the device engine keeps of a block: its K/V tiles, or in their place the
// payload of its page, in the pool. Memory and layout only.
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

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KV_H_
