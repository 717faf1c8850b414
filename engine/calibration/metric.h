// What an error of a layer's latents costs: a quadratic form, mostly the Fisher
// information of the model's output, and its root.
#ifndef XCACHE_ENGINE_CALIBRATION_METRIC_H_
#define XCACHE_ENGINE_CALIBRATION_METRIC_H_

#include <vector>

#include "Eigen/Dense"
#include "engine/calibration/observations.h"
#include "engine/model/model.h"

namespace xcache {

struct Metric {
  // Of each layer, A = M^(1/2) and its inverse; layer 0 is empty.
  std::vector<Eigen::MatrixXd> root, inverse;
};

// M = (1 - plain_share) F + plain_share N, where N, of weights and mean squared
// queries alone, is scaled to F for K and for V.
Metric MakeMetric(const Model& model, const Observations& seen,
                  double plain_share);

}  // namespace xcache

#endif  // XCACHE_ENGINE_CALIBRATION_METRIC_H_
