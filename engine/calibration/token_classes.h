// How finely each token is to be kept: a linear guess of the logarithm of its
// sensitivity, by its embedding and two layers' latents.
#ifndef XCACHE_ENGINE_CALIBRATION_TOKEN_CLASSES_H_
#define XCACHE_ENGINE_CALIBRATION_TOKEN_CLASSES_H_

#include <cstdint>
#include <vector>

#include "engine/calibration/observations.h"
#include "engine/kernels/kernels.h"
#include "engine/model/model.h"
#include "engine/xcache/transform/transform_data.h"

namespace xcache {

// [tokens, d]: x / rms(x) of the tokens' embeddings.
std::vector<float> UnitEmbeddings(const Model& model, const Kernels& kernels,
                                  const std::vector<TokenId>& tokens);

// Sets class_layers, class_weights and class_bias.
void FitTokenClasses(const Model& model, const Observations& seen,
                     const Kernels& kernels, double step_power,
                     TransformData* data);

// Step classes of a window's tokens, [tokens]; those of sinks too.
std::vector<uint32_t> TokenClasses(const TransformData& data,
                                   const Observations& seen,
                                   const Kernels& kernels, size_t window,
                                   const std::vector<float>& unit);

}  // namespace xcache

#endif  // XCACHE_ENGINE_CALIBRATION_TOKEN_CLASSES_H_
