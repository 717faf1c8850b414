// Corrections of xquant-tc: rows that the transform was not fitted to - of
// scripts, tables or noise that calibration has not seen - are told from others
// by what their error costs, and get values of their own on top.
//
// Two errors are too large. That of one row: more than kMostError times the
// level's mean. And that which rows of a block share: alike rows, as of one
// repeated letter, err alike, so that a reader of all of them reads their error
// where those of other rows average out. The rows that share most of it are
// corrected until the others share no more than kMostShared. Values are
// dithered: equal rows get different ones.
//
// And rows that are sinks beyond those that are never stored are corrected in
// every layer: each query reads them.
#ifndef XCACHE_ENGINE_XCACHE_TRANSFORM_ROW_CORRECTOR_H_
#define XCACHE_ENGINE_XCACHE_TRANSFORM_ROW_CORRECTOR_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/packed.h"
#include "engine/xcache/transform/symbol_coder.h"
#include "engine/xcache/transform/transform_data.h"

namespace xcache {

class RowCorrector {
 public:
  // Of a level of `data`, which need not outlive it.
  static absl::StatusOr<RowCorrector> Create(const TransformData& data,
                                             const TransformLevel& level,
                                             const Kernels& kernels);

  // Adds the correction of `layer`, if it needs one, to `corrections`.
  // `errors` [64, stride]: 2 k values of a row, what was less what came back;
  // `steps`: of rows, 0 of those that are not coded. Rows below `sinks` are
  // corrected whatever their error. False: a value is too large for its
  // integer.
  bool Correct(uint32_t layer, const float* errors, int64_t stride,
               const std::array<float, kRansLanes>& steps, size_t sinks,
               std::vector<LayerCorrection>* corrections) const;
  // Adds it to rows [64, stride].
  void Apply(const LayerCorrection& correction,
             const std::array<float, kRansLanes>& steps, float* rows,
             int64_t stride) const;

 private:
  struct Layer {
    PackedFloat measure;  // [2 k, kMeasures]
    std::vector<float> measure_scales;
    std::vector<float> scales;
    float error = 0.0f;
  };

  explicit RowCorrector(const Kernels& kernels) : kernels_(&kernels) {}

  using Measured = std::array<std::array<float, kMeasures>, kRansLanes>;
  using Rows = std::array<bool, kRansLanes>;

  // Which rows are to be corrected.
  Rows Choose(const Layer& layer, const float* errors, int64_t stride,
              const std::array<float, kRansLanes>& steps, size_t sinks) const;
  // Adds those that share too much of an error. `measured`: in units of steps,
  // 0 of rows that are not coded.
  static void ChooseSharers(const Measured& measured, float most, Rows* rows);

  const Kernels* kernels_;
  std::vector<Layer> layers_;  // 1 ..
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_TRANSFORM_ROW_CORRECTOR_H_
