#include "engine/common/rope_table.h"

#include <cmath>

namespace xcache {

RopeTable::RopeTable(const Model& model, bool slides) {
  const HyperParams& h = model.hparams();
  order_ = h.rope_pairs == RopePairs::kInterleaved ? RopeOrder::kInterleaved
                                                   : RopeOrder::kHalves;
  std::vector<float> factors;
  if (model.rope_freqs().has_value() && !slides) {
    factors.resize(static_cast<size_t>(model.rope_freqs()->cols));
    DequantizeRow(*model.rope_freqs(), 0, factors.data());
  }
  const double scale = h.rope_scaling == RopeScaling::kLinear && !slides
                           ? 1.0 / static_cast<double>(h.rope_linear_factor)
                           : 1.0;
  const double base =
      static_cast<double>(slides ? h.window_rope_freq_base : h.rope_freq_base);
  for (int i = 0; i < h.rope_dim / 2; ++i) {
    // Su et al., "RoFormer", 2021, section 3.2.2.
    double inverse = std::pow(base, -2.0 * i / h.rope_dim);
    if (!factors.empty()) {
      inverse /= static_cast<double>(factors[static_cast<size_t>(i)]);
    }
    inverse_.push_back(inverse * scale);
  }
}

void RopeTable::Extend(int64_t num_positions) {
  const size_t half = inverse_.size();
  if (half == 0) return;
  auto position = static_cast<int64_t>(cos_.size() / half);
  if (position >= num_positions) return;
  // In steps, so that decoding does not extend it token by token.
  num_positions = (num_positions + 511) / 512 * 512;
  cos_.reserve(static_cast<size_t>(num_positions) * half);
  sin_.reserve(static_cast<size_t>(num_positions) * half);
  for (; position < num_positions; ++position) {
    for (double inverse : inverse_) {
      const double angle = static_cast<double>(position) * inverse;
      cos_.push_back(static_cast<float>(std::cos(angle)));
      sin_.push_back(static_cast<float>(std::sin(angle)));
    }
  }
}

}  // namespace xcache
