// Codec xquant-cl, for models with as many KV heads as query heads: the page
// holds the differences of the unit rows from layer to layer, d values a token
// where K and V are 2 d (cross_layer.h with U = I). The first layers, the base,
// hold the rows themselves at more bits: there the stream changes most.
#include <memory>
#include <utility>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/xcache/cross_layer.h"
#include "engine/xcache/quant_options.h"

namespace xcache {

absl::StatusOr<std::unique_ptr<const Codec>> MakeXquantCl(
    const CodecSpec& spec, const CodecSources& sources, Isa isa) {
  OptionReader options(spec);
  const bool refined = ReadPreset(options);
  const QuantOptions quant = ReadQuantOptions(options, refined);
  const BaseOptions base = ReadBaseOptions(options, quant, 3);
  const AxisOptions axis = ReadAxisOptions(options, refined, "token");
  const Prediction prediction = ReadPrediction(options, refined);
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());

  const CodecShape& shape = sources.shape;
  PayloadPlan plan(shape, quant);
  std::vector<CrossLayerMatrices> matrices;
  for (int i = 0; i < shape.num_layers; ++i) {
    const bool is_base = i < base.layers;
    plan.AddLayer({MatrixOf(axis, quant, shape.d_model,
                            is_base ? base.bits : quant.bits)},
                  is_base ? Prediction::kNone : prediction);
    XC_ASSIGN_OR_RETURN(matrices.emplace_back().projections,
                        PackKvProjections(sources, i));
  }
  return NewCrossLayerCodec(std::move(canonical), std::move(plan),
                            std::move(matrices), isa);
}

}  // namespace xcache
