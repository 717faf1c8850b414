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

  int kv_dim() const { return n_kv_heads * head_dim; }
  // Elements of the K tile, or the V tile, of one layer and head.
  size_t tile_elements() const {
    return static_cast<size_t>(kBlockTokens) * static_cast<size_t>(head_dim);
  }
  // Bytes of all tiles of a block, FP16.
  size_t tile_bytes() const {
    return static_cast<size_t>(num_layers) * static_cast<size_t>(n_kv_heads) *
           2 * tile_elements() * sizeof(uint16_t);
  }
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_COMMON_KV_SHAPE_H_
