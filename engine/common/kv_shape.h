// The sizes of a block's K/V tiles, the same for every engine.
#ifndef XCACHE_ENGINE_COMMON_KV_SHAPE_H_
#define XCACHE_ENGINE_COMMON_KV_SHAPE_H_

#include <cstddef>
#include <cstdint>

#include "engine/types.h"

namespace xcache {

struct KvShape {
  int num_layers = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int d_model = 0;
  // One layer of so many, the last, sees all keys; the others' attention
  // slides.
  int window_pattern = 1;

  int kv_dim() const { return n_kv_heads * head_dim; }
  // Elements of the K tile, or the V tile, of one layer and head.
  size_t tile_elements() const {
    return static_cast<size_t>(kBlockTokens) * static_cast<size_t>(head_dim);
  }
  // Elements of a layer's tiles, K and V of all heads.
  size_t layer_elements() const {
    return static_cast<size_t>(n_kv_heads) * 2 * tile_elements();
  }
  // Bytes of the tiles of so many layers of a block, FP16.
  size_t tile_bytes(int layers) const {
    return static_cast<size_t>(layers) * layer_elements() * sizeof(uint16_t);
  }
  size_t tile_bytes() const { return tile_bytes(num_layers); }
  // Layers that see all keys.
  int full_layers() const { return num_layers / window_pattern; }
  // Where a layer is in an order in which those come first.
  int slot(int layer) const {
    const int full_before = layer / window_pattern;
    return (layer + 1) % window_pattern == 0
               ? full_before
               : full_layers() + layer - full_before;
  }
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_COMMON_KV_SHAPE_H_
