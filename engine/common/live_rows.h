// Where the exact rows of a live block are, those that its codec needs when the
// block seals: layout only, whichever memory it is.
#ifndef XCACHE_ENGINE_COMMON_LIVE_ROWS_H_
#define XCACHE_ENGINE_COMMON_LIVE_ROWS_H_

#include <cstddef>

#include "engine/common/kv_shape.h"
#include "engine/types.h"
#include "engine/xcache/codec.h"

namespace xcache {

// What a codec's live_rows() asks for, [layers][64][width] FP32 each, one after
// another. K and V as FP16 are in the tiles and not kept twice.
class LiveRowsLayout {
 public:
  LiveRowsLayout(const KvShape& shape, unsigned live_rows) {
    const auto add = [&](Part& part, bool asked, int width) {
      part.at = floats_;
      part.stride =
          asked ? size_t{kBlockTokens} * static_cast<size_t>(width) : 0;
      floats_ += static_cast<size_t>(shape.num_layers) * part.stride;
    };
    add(unit_x_, (live_rows & kLiveUnitX) != 0, shape.d_model);
    add(rms_, (live_rows & kLiveRms) != 0, 1);
    add(k_pre_, (live_rows & kLiveKvPre) != 0, shape.kv_dim());
    add(v_pre_, (live_rows & kLiveKvPre) != 0, shape.kv_dim());
  }

  size_t floats() const { return floats_; }
  size_t bytes() const { return floats_ * sizeof(float); }
  // Rows of a layer; null where the codec does not ask. `base` may be null
  // where floats() is 0.
  float* unit_x(float* base, int layer = 0) const {
    return At(base, unit_x_, layer);
  }
  float* rms(float* base, int layer = 0) const { return At(base, rms_, layer); }
  float* k_pre(float* base, int layer = 0) const {
    return At(base, k_pre_, layer);
  }
  float* v_pre(float* base, int layer = 0) const {
    return At(base, v_pre_, layer);
  }

 private:
  struct Part {
    size_t at = 0;
    size_t stride = 0;  // of a layer; 0: not asked for
  };
  static float* At(float* base, const Part& part, int layer) {
    if (part.stride == 0) return nullptr;
    return base + part.at + static_cast<size_t>(layer) * part.stride;
  }

  Part unit_x_, rms_, k_pre_, v_pre_;
  size_t floats_ = 0;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_COMMON_LIVE_ROWS_H_
