// From observations to what xquant-tc needs (transform_data.h): the metric, the
// classes of tokens, and for each group of layers, in order, prediction,
// transform and statistics. Deterministic.
#ifndef XCACHE_ENGINE_CALIBRATION_FIT_H_
#define XCACHE_ENGINE_CALIBRATION_FIT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/calibration/observations.h"
#include "engine/calibration/products.h"
#include "engine/model/model.h"
#include "engine/types.h"
#include "engine/xcache/transform/transform_data.h"

namespace xcache {

// Axes of wider groups take hours (CALIBRATION.md).
inline constexpr uint32_t kMostFitWidth = 6144;

struct FitOptions {
  // At most, and no more than have kMostFitWidth latents together.
  uint32_t group_layers = 10;
  uint32_t rank = 384;  // of predictions
  // Steps of the levels, in roots of nats: half the sum of squared errors in
  // the metric is about what a reader of the row loses in log-likelihood.
  std::array<double, kLevelNames.size()> steps = {0.0023, 0.0039, 0.0060};
  // What of the metric is not Fisher information but how far an error moves
  // scores and values: steadies it where few gradients were seen.
  double plain_share = 0.1;
  // Channels are kept whose variance is at least this times the step squared.
  double least_variance = 0.06;
  // A token's step falls by this power of its sensitivity's root.
  double step_power = 0.6;
  // Every so many windows, one is used for the statistics of symbols.
  size_t statistics_stride = 4;
};

// INVALID_ARGUMENT: the observations are not finite, or too few.
absl::StatusOr<TransformData> FitTransform(const Model& model,
                                           const Observations& seen,
                                           const FitOptions& options,
                                           const Products& products,
                                           const ProgressFn& progress);

}  // namespace xcache

#endif  // XCACHE_ENGINE_CALIBRATION_FIT_H_
