// What calibration sees of a model on windows of text: every layer's latents,
// how much the model's output depends on them, and how much on each token.
#ifndef XCACHE_ENGINE_CALIBRATION_OBSERVATIONS_H_
#define XCACHE_ENGINE_CALIBRATION_OBSERVATIONS_H_

#include <cstdint>
#include <vector>

#include "Eigen/Dense"
#include "engine/calibration/float_model.h"
#include "engine/calibration/products.h"
#include "engine/kernels/kernels.h"
#include "engine/types.h"
#include "engine/xcache/payload_plan.h"

namespace xcache {

// Windows are whole blocks; their first kSinkTokens rows are sinks, which no
// codec sees and no statistics count.
struct Observations {
  CodecShape shape;
  std::vector<std::vector<TokenId>> windows;
  // [windows][layers 1 .. L - 1][tokens][2 k], IEEE binary16.
  std::vector<std::vector<uint16_t>> latents;
  // Of each layer, layer 0 without use: covariance of y; E[g g^T], the Fisher
  // information; mean squares of the queries, [n_heads * head_dim].
  std::vector<Eigen::MatrixXd> covariance, fisher;
  std::vector<Eigen::VectorXd> query_squares;
  // Of windows whose gradients were taken: which, and of each row the sum over
  // layers of g^T covariance g.
  std::vector<size_t> gradient_windows;
  std::vector<std::vector<double>> sensitivity;

  // Rows of a layer of a window, [tokens, 2 k].
  void Latents(const Kernels& kernels, size_t window, int layer,
               float* out) const;
};

// Takes gradients of `num_gradients` windows, spread evenly; targets are
// sampled from the model, by `seed`.
Observations Observe(FloatModel& model, const HyperParams& hparams,
                     const Products& products,
                     std::vector<std::vector<TokenId>> windows,
                     size_t num_gradients, uint64_t seed,
                     const ProgressFn& progress);

}  // namespace xcache

#endif  // XCACHE_ENGINE_CALIBRATION_OBSERVATIONS_H_
