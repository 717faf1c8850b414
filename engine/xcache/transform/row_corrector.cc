#include "engine/xcache/transform/row_corrector.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/base/status_macros.h"

namespace xcache {
namespace {

// Of the level's mean error: of a row, and of what a block's rows share, times
// their number, which of independent errors would be the mean as well.
constexpr float kMostError = 64.0f;
constexpr float kMostShared = 64.0f;
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

bool RowCorrector::Choose(const Layer& layer, const float* errors,
                          int64_t stride,
                          const std::array<float, kRansLanes>& steps,
                          std::array<bool, kRansLanes>* rows) const {
  std::array<float, kRansLanes * kMeasures> measured;
  FloatMatmulArgs args;
  args.a = errors;
  args.a_stride = stride;
  args.num_rows = kRansLanes;
  args.b = layer.measure.view();
  args.out = measured.data();
  args.out_stride = kMeasures;
  kernels_->float_matmul(args, 0, layer.measure.num_panels());
  std::array<float, kMeasures> sums{};
  float count = 0.0f;
  bool any = false;
  for (size_t r = 0; r < kRansLanes; ++r) {
    (*rows)[r] = false;
    if (!(steps[r] > 0.0f)) continue;
    const float inverse = 1.0f / steps[r];
    float cost = 0.0f;
    for (size_t m = 0; m < kMeasures; ++m) {
      const float x =
          measured[r * kMeasures + m] * layer.measure_scales[m] * inverse;
      sums[m] += x;
      cost += x * x;
    }
    count += 1.0f;
    // Not finite, of rows beyond all measure: to be corrected as well.
    (*rows)[r] = !(cost <= kMostError * layer.error);
    any |= (*rows)[r];
  }
  float shared = 0.0f;
  for (float sum : sums) shared += sum * sum;
  if (count > 0.0f && !(shared <= kMostShared * layer.error * count)) {
    for (size_t r = 0; r < kRansLanes; ++r) (*rows)[r] = steps[r] > 0.0f;
    any = true;
  }
  return any;
}

bool RowCorrector::Correct(uint32_t layer, const float* errors, int64_t stride,
                           const std::array<float, kRansLanes>& steps,
                           std::vector<LayerCorrection>* corrections) const {
  const Layer& of = layers_[layer - 1];
  std::array<bool, kRansLanes> rows;
  if (!Choose(of, errors, stride, steps, &rows)) return true;
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
