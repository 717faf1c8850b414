// Cosines and sines of RoPE, computed once for each position, for every engine.
#ifndef XCACHE_ENGINE_COMMON_ROPE_TABLE_H_
#define XCACHE_ENGINE_COMMON_ROPE_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/kernels/kernels.h"
#include "engine/model/model.h"

namespace xcache {

// Cosines and sines of RoPE, for positions as far as they were asked for.
class RopeTable {
 public:
  // `slides`: of the layers whose attention slides.
  explicit RopeTable(const Model& model, bool slides = false);

  // Makes positions [0, num_positions) available. Not thread-safe.
  void Extend(int64_t num_positions);
  // [rope_dim / 2]
  const float* cos(int64_t position) const { return At(cos_, position); }
  const float* sin(int64_t position) const { return At(sin_, position); }
  int rope_dim() const { return 2 * static_cast<int>(inverse_.size()); }
  RopeOrder order() const { return order_; }

 private:
  const float* At(const std::vector<float>& table, int64_t position) const {
    return table.data() + static_cast<size_t>(position) * inverse_.size();
  }

  std::vector<double> inverse_;  // radians a position, of each pair
  RopeOrder order_;
  std::vector<float> cos_, sin_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_COMMON_ROPE_TABLE_H_
