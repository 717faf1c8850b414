#include "server/core/cache/quality.h"

namespace xcache {

std::string_view CodecOfChoice(std::string_view choice,
                               const ModelInfo& model) {
  for (const Quality& quality : kQualities) {
    if (quality.name != choice) continue;
    return model.n_kv_heads < model.n_heads ? quality.gqa_codec
                                            : quality.mha_codec;
  }
  return choice;
}

std::optional<double> CostOfMhaForm(std::string_view spec,
                                    const ModelInfo& model) {
  const std::string_view name = spec.substr(0, spec.find(':'));
  if (name != "xquant" && name != "xquant-cl") return std::nullopt;
  // A token and layer: d values of X, against the latents of K and of V.
  const int kv_values = 2 * model.n_kv_heads * model.head_dim;
  if (kv_values >= model.d_model) return std::nullopt;
  return static_cast<double>(model.d_model) / kv_values;
}

}  // namespace xcache
