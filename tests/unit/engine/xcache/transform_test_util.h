// Made-up numbers, and a made-up profile of xquant-tc: the transform is a
// rotation of pairs of latents, all channels are kept, the prediction reads a
// few features. So what comes back is what went in, but for rounding.
#ifndef XCACHE_TESTS_UNIT_ENGINE_XCACHE_TRANSFORM_TEST_UTIL_H_
#define XCACHE_TESTS_UNIT_ENGINE_XCACHE_TRANSFORM_TEST_UTIL_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/xcache/transform/transform_data.h"

namespace xcache {

// Roughly normal, variance 1: the sum of four uniform numbers. Exact in FP32.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed * 2 + 1) {}
  float Next() {
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<float>(state_ >> 48) * 0x1p-16f - 0.5f;
    }
    return sum * 1.75f;
  }
  std::vector<float> Vector(size_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = Next();
    return v;
  }

 private:
  uint64_t state_;
};

// Steps of its levels: errors are at most half of the class's, at most double
// that, in each direction.
inline constexpr float kMadeUpSteps[] = {0.01f, 0.1f, 1.0f};

inline TransformData MakeUpTransform(const CodecShape& shape,
                                     uint32_t group_layers) {
  TransformData data;
  data.shape = shape;
  data.origin = "made up";
  const auto layers = static_cast<uint32_t>(shape.num_layers);
  const auto d = static_cast<size_t>(shape.d_model);
  const auto k = static_cast<size_t>(shape.kv_dim);
  data.class_layers = {std::min(1u, layers - 1), layers - 1};
  Numbers numbers(99);
  data.class_weights = numbers.Vector(d + 4 * k);
  for (float& w : data.class_weights) {
    w *= 1.5f / std::sqrt(static_cast<float>(d + 4 * k));
  }
  for (uint32_t first = 1; first < layers; first += group_layers) {
    TransformGroup group;
    group.first_layer = first;
    group.num_layers = std::min(group_layers, layers - first);
    const auto width = group.num_layers * 2 * static_cast<uint32_t>(k);
    group.rank = std::min(5u, width);
    group.channels = width;
    data.groups.push_back(group);
    const auto features =
        static_cast<uint32_t>(NumFeatures(data, data.groups.size() - 1));
    TransformGroup& made = data.groups.back();
    std::vector<double> predict(made.rank * features);
    for (double& v : predict) v = 0.05 * static_cast<double>(numbers.Next());
    made.predict = MakeHalfRows(made.rank, features, predict.data());
    // Rows of a rotation: channel c of latents c and its neighbour.
    const auto axis = [&](uint32_t c, uint32_t i) {
      const uint32_t pair = c ^ 1;
      if (pair >= width) return c == i ? 1.0 : 0.0;
      if (c == i) return 0.8;
      return pair == i ? (i < c ? -0.6 : 0.6) : 0.0;
    };
    std::vector<double> encode, decode;
    for (uint32_t c = 0; c < width; ++c) {
      for (uint32_t i = 0; i < width; ++i) encode.push_back(axis(c, i));
      for (uint32_t i = 0; i < made.rank; ++i) encode.push_back(axis(c, i));
    }
    for (uint32_t r = 0; r < made.rank; ++r) {
      for (uint32_t i = 0; i < width; ++i) decode.push_back(r == i ? 1.0 : 0.0);
    }
    for (uint32_t c = 0; c < width; ++c) {
      for (uint32_t i = 0; i < width; ++i) decode.push_back(axis(c, i));
    }
    made.encode = MakeHalfRows(width, width + made.rank, encode.data());
    made.decode = MakeHalfRows(made.rank + width, width, decode.data());
  }
  const auto latents = 2 * static_cast<uint32_t>(k);
  for (uint32_t layer = 1; layer < layers; ++layer) {
    TransformLayer& of = data.layers.emplace_back();
    std::vector<double> measure(kMeasures * latents);
    for (double& v : measure) {
      v = numbers.Next() < 0.0f ? -std::sqrt(1.0 / kMeasures)
                                : std::sqrt(1.0 / kMeasures);
    }
    of.measure = MakeHalfRows(kMeasures, latents, measure.data());
    of.scales.assign(latents, 1.0f);
  }
  for (float step : kMadeUpSteps) {
    TransformLevel& level = data.levels.emplace_back();
    level.step = step;
    level.errors.assign(data.layers.size(),
                        static_cast<float>(latents) / 12.0f);
    for (const TransformGroup& of : data.groups) {
      TransformLevel::Group& group = level.groups.emplace_back();
      group.channels = of.channels;
      for (uint32_t c = 0; c < of.channels; ++c) {
        for (int s = 0; s < kNumSteps; ++s) {
          group.expectations.push_back(static_cast<uint32_t>(
              std::exp2(1.0 - s / 2.0) / static_cast<double>(step) *
                  kExpectationUnit / (1.0 + c / 16.0) +
              40.0));
        }
      }
    }
  }
  for (int context = 0; context < kNumContexts; ++context) {
    const double mean = std::exp2(-6.5 + 9.0 / 22 * (context % kNumMagnitudes) +
                                  0.2 * (context / kNumMagnitudes));
    std::vector<double> counts(100);
    for (size_t v = 0; v < counts.size(); ++v) {
      counts[v] = std::pow(mean / (1.0 + mean), static_cast<double>(v));
    }
    data.tables.push_back(FrequenciesOf(counts));
  }
  data.tables.push_back({{2048, 768, 256}, 0});
  return data;
}

}  // namespace xcache

#endif  // XCACHE_TESTS_UNIT_ENGINE_XCACHE_TRANSFORM_TEST_UTIL_H_
