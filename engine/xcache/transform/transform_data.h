// What xquant-tc needs of a model: what calibration computes, a profile of
// format 2 keeps (PROFILE_FORMAT.md) and the codec packs. Plain data.
//
// The rows y = [K | V] of a layer, as they leave W_k and W_v, are its latents,
// 2 k wide; layer 0 has none, since they follow from the token. Neighbouring
// layers make a group. For a token, with f the features that the decoder has
// before it comes to a group - the unit row of the token's embedding, the
// latents that came back of the last layers of the group before, and 1:
//   z = f P^T                       P: predict
//   c = ([y | -z] E^T) / step       E: encode
//   q: c rounded
//   y^ = [z | q step] D             D: decode
// D's first rows are the prediction's, the others the transform's. The codec
// rounds P and D to integers (group_coder.h), and encodes what is left of y
// after the prediction that comes of them, which needs E's first columns only.
#ifndef XCACHE_ENGINE_XCACHE_TRANSFORM_TRANSFORM_DATA_H_
#define XCACHE_ENGINE_XCACHE_TRANSFORM_TRANSFORM_DATA_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/sha256.h"
#include "engine/kernels/packed.h"
#include "engine/xcache/payload_plan.h"
#include "engine/xcache/profile.h"
#include "engine/xcache/transform/context_model.h"
#include "engine/xcache/transform/symbol_tables.h"

namespace xcache {

// Row r is scales[r] times values[r, :], IEEE binary16, the largest about 1.
struct HalfRows {
  uint32_t rows = 0;
  uint32_t cols = 0;
  std::vector<float> scales;     // [rows]
  std::vector<uint16_t> values;  // [rows, cols]

  bool operator==(const HalfRows&) const = default;
};
// Rounds `values` [rows, cols].
HalfRows MakeHalfRows(uint32_t rows, uint32_t cols, const double* values);
// The first `count` rows as a matrix of so many outputs, without the scales.
absl::StatusOr<PackedFloat> PackRows(const HalfRows& rows, size_t count);

struct TransformGroup {
  uint32_t first_layer = 0;
  uint32_t num_layers = 0;
  uint32_t rank = 0;      // of the prediction
  uint32_t channels = 0;  // of the transform, in falling variance
  HalfRows predict;       // [rank, features]
  HalfRows encode;        // [channels, width + rank]; width = num_layers * 2 k
  HalfRows decode;        // [rank + channels, width]

  bool operator==(const TransformGroup&) const = default;
};

// What an error of a layer's latents costs.
struct TransformLayer {
  // The squared length of measure e, e an error, is about its cost: the
  // metric's root times signs drawn at random, kMeasures of them for the whole
  // width.
  HalfRows measure;  // [kMeasures, 2 k]
  // How large an error of each latent alone costs 1.
  std::vector<float> scales;  // [2 k]

  bool operator==(const TransformLayer&) const = default;
};
inline constexpr uint32_t kMeasures = 32;

// Bounds of a profile's sizes, so that what a codec takes is known without it.
inline constexpr uint32_t kMostGroupLayers = 10;
inline constexpr uint32_t kMostRank = 384;
inline constexpr uint64_t MostChannels(uint64_t width) {
  return std::min(width, width / 4 * 3 + 64);
}

// Latents of so many layers of the group before are features.
inline constexpr uint32_t kFeatureLayers = 2;
// Magnitudes 1, 2, and 3 or more come back nearer to 0 than they say.
inline constexpr size_t kNumShifts = 3;

// How finely coefficients are rounded, and what is then expected of them.
struct TransformLevel {
  struct Group {
    uint32_t channels = 0;               // the first so many are coded
    std::vector<uint32_t> expectations;  // [channels][kNumSteps]
    // What is added to a magnitude, by it and by its channel's level.
    std::array<std::array<float, kNumMagnitudes>, kNumShifts> shifts{};

    bool operator==(const Group&) const = default;
  };
  float step = 0.0f;
  std::vector<Group> groups;
  // Of layers 1 .. L - 1: the mean cost of a row's error, in squares of its
  // step.
  std::vector<float> errors;

  bool operator==(const TransformLevel&) const = default;
};

// The levels, finest first, and their names in a spec.
inline constexpr std::array<std::string_view, 3> kLevelNames = {
    "high", "balanced", "small"};

struct TransformData {
  CodecShape shape;
  std::string origin;  // what it was calibrated on, for people
  // A token's step class is round(w [unit embedding | y of layer a | y of layer
  // b] + bias), between -2 and 2.
  std::array<uint32_t, 2> class_layers{};
  std::vector<float> class_weights;  // [d + 4 k]
  float class_bias = 0.0f;
  std::vector<TransformGroup> groups;  // layers 1 .. L - 1, in order
  std::vector<TransformLayer> layers;  // 1 .. L - 1
  std::vector<TransformLevel> levels;  // kLevelNames
  // kNumContexts tables, then that of step classes, which has no escape.
  std::vector<SymbolFrequencies> tables;

  bool operator==(const TransformData&) const = default;
};

// Features of group `g`.
size_t NumFeatures(const TransformData& data, size_t g);

// The profile that holds `data`. REQUIRES: it is whole. `digest`: of what it
// serializes to, where that is known.
std::unique_ptr<const Profile> NewTransformProfile(
    TransformData data, const Digest& model_fp,
    std::optional<Digest> digest = std::nullopt);
// Of the bytes between a profile's header and its checksum; `digest`: of all
// its bytes. DATA_LOSS: they are not what NewTransformProfile serializes.
absl::StatusOr<std::unique_ptr<const Profile>> ParseTransformProfile(
    std::string_view body, const CodecShape& shape, const Digest& model_fp,
    const Digest& digest);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_TRANSFORM_TRANSFORM_DATA_H_
