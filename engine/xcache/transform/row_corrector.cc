#include "engine/xcache/transform/row_corrector.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/base/status_macros.h"

namespace xcache {
namespace {

// Of the level's mean error: of a row, and of what a block's rows share, times
// their number, which of independent errors would be the mean as well. Text
// like the calibration's shares up to 6.
constexpr float kMostError = 64.0f;
constexpr float kMostShared = 10.0f;
// Step of a corrected latent: its error is then uniform, and costs a twelfth of
// the square of this, in squares of the row's step.
constexpr float kCorrectionStep = 0.5f;
constexpr float kMaxMagnitude = 32767.0f;
constexpr float kLeastExpectation = 0.01f;

// Uniform in [-1/2, 1/2), by the place of a value in its block.
float Dither(uint32_t place) {
  uint32_t h = place * 0x9e3779b9u;
  h = (h ^ h >> 16) * 0x85ebca6bu;
  h = (h ^ h >> 13) * 0xc2b2ae35u;
  h ^= h >> 16;
  return static_cast<float>(h >> 8) * 0x1p-24f - 0.5f;
}

}  // namespace

absl::StatusOr<RowCorrector> RowCorrector::Create(const TransformData& data,
                                                  const TransformLevel& level,
                                                  const Kernels& kernels) {
  RowCorrector out(kernels);
  for (size_t i = 0; i < data.layers.size(); ++i) {
    const TransformLayer& from = data.layers[i];
    Layer& layer = out.layers_.emplace_back();
    XC_ASSIGN_OR_RETURN(layer.measure,
                        PackRows(from.measure, from.measure.rows));
    layer.measure_scales = from.measure.scales;
    layer.scales = from.scales;
    layer.error = level.errors[i];
  }
  return out;
}

RowCorrector::Rows RowCorrector::Choose(
    const Layer& layer, const float* errors, int64_t stride,
    const std::array<float, kRansLanes>& steps, size_t sinks) const {
  Measured measured;
  FloatMatmulArgs args;
  args.a = errors;
  args.a_stride = stride;
  args.num_rows = kRansLanes;
  args.b = layer.measure.view();
  args.out = measured[0].data();
  args.out_stride = kMeasures;
  kernels_->float_matmul(args, 0, layer.measure.num_panels());
  Rows rows{};
  float count = 0.0f;
  for (size_t r = 0; r < kRansLanes; ++r) {
    if (!(steps[r] > 0.0f)) {
      measured[r].fill(0.0f);
      continue;
    }
    const float inverse = 1.0f / steps[r];
    float cost = 0.0f;
    for (size_t m = 0; m < kMeasures; ++m) {
      measured[r][m] *= layer.measure_scales[m] * inverse;
      cost += measured[r][m] * measured[r][m];
    }
    count += 1.0f;
    // Not finite, of rows beyond all measure: to be corrected as well.
    rows[r] = r < sinks || !(cost <= kMostError * layer.error);
  }
  ChooseSharers(measured, kMostShared * layer.error * count, &rows);
  return rows;
}

void RowCorrector::ChooseSharers(const Measured& measured, float most,
                                 Rows* rows) {
  std::array<float, kMeasures> sums{};
  for (size_t r = 0; r < kRansLanes; ++r) {
    if ((*rows)[r]) continue;
    for (size_t m = 0; m < kMeasures; ++m) sums[m] += measured[r][m];
  }
  const auto along = [&](const std::array<float, kMeasures>& x) {
    float sum = 0.0f;
    for (size_t m = 0; m < kMeasures; ++m) sum += sums[m] * x[m];
    return sum;
  };
  while (along(sums) > most) {
    // The row that has most of it; what all have together is more than 0.
    size_t at = kRansLanes;
    float best = 0.0f;
    for (size_t r = 0; r < kRansLanes; ++r) {
      const float share = (*rows)[r] ? 0.0f : along(measured[r]);
      if (share > best) {
        best = share;
        at = r;
      }
    }
    if (at == kRansLanes) break;
    (*rows)[at] = true;
    for (size_t m = 0; m < kMeasures; ++m) sums[m] -= measured[at][m];
  }
}

bool RowCorrector::Correct(uint32_t layer, const float* errors, int64_t stride,
                           const std::array<float, kRansLanes>& steps,
                           size_t sinks,
                           std::vector<LayerCorrection>* corrections) const {
  const Layer& of = layers_[layer - 1];
  const Rows rows = Choose(of, errors, stride, steps, sinks);
  if (std::find(rows.begin(), rows.end(), true) == rows.end()) return true;
  const size_t latents = of.scales.size();
  LayerCorrection& out = corrections->emplace_back();
  out.layer = layer;
  out.levels.fill(kNoCorrection);
  out.values.assign(latents * kRansLanes, 0);
  for (size_t r = 0; r < kRansLanes; ++r) {
    if (!rows[r]) continue;
    const float inverse = 1.0f / (steps[r] * kCorrectionStep);
    const float* row = errors + static_cast<int64_t>(r) * stride;
    float sum = 0.0f;
    for (size_t i = 0; i < latents; ++i) {
      const size_t place = i * kRansLanes + r;
      const float x = std::floor(row[i] / of.scales[i] * inverse +
                                 Dither(static_cast<uint32_t>(place)) + 0.5f);
      if (!(std::abs(x) <= kMaxMagnitude)) return false;
      sum += std::abs(x);
      out.values[place] = static_cast<int16_t>(x);
    }
    const float mean = sum / static_cast<float>(latents) + kLeastExpectation;
    out.levels[r] = static_cast<uint8_t>(MagnitudeOf(
        static_cast<uint32_t>(mean * static_cast<float>(kExpectationUnit))));
  }
  return true;
}

void RowCorrector::Apply(const LayerCorrection& correction,
                         const std::array<float, kRansLanes>& steps,
                         float* rows, int64_t stride) const {
  const Layer& of = layers_[correction.layer - 1];
  for (size_t r = 0; r < kRansLanes; ++r) {
    if (correction.levels[r] == kNoCorrection) continue;
    const float step = steps[r] * kCorrectionStep;
    float* row = rows + static_cast<int64_t>(r) * stride;
    for (size_t i = 0; i < of.scales.size(); ++i) {
      const size_t place = i * kRansLanes + r;
      row[i] += (static_cast<float>(correction.values[place]) -
                 Dither(static_cast<uint32_t>(place))) *
                (of.scales[i] * step);
    }
  }
}

}  // namespace xcache
