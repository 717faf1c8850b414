// Codec xquant-cl, for models with as many KV heads as query heads: the page
// holds the differences of the unit rows from layer to layer, d values a token
// where K and V are 2 d (cross_layer.h with U = I). The first layers, the base,
// hold the rows themselves at more bits: there the stream changes most.
#include <memory>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/xcache/cross_layer.h"
#include "engine/xcache/projection.h"
#include "engine/xcache/quant_options.h"

namespace xcache {

absl::StatusOr<std::unique_ptr<const Codec>> MakeXquantCl(
    const CodecSpec& spec, const CodecSources& sources, Isa isa) {
  OptionReader options(spec);
  const bool refined = ReadPreset(options);
  const QuantOptions quant = ReadQuantOptions(options, refined);
  const BaseOptions base = ReadBaseOptions(options, quant, 3);
  const bool per_token =
      options.Choice("axis", {"channel", "token"}, "token") == "token";
  const bool rotate = ReadSwitch(options, "rotate", refined && per_token);
  const Prediction prediction =
      ReadPrediction(options, refined ? "fit" : "unit");
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());
  XC_RETURN_IF_ERROR(CheckRotation(canonical, rotate, per_token));

  const CodecShape& shape = sources.shape;
  std::vector<CrossLayerLayer> layers(static_cast<size_t>(shape.num_layers));
  for (int i = 0; i < shape.num_layers; ++i) {
    CrossLayerLayer& layer = layers[static_cast<size_t>(i)];
    XC_ASSIGN_OR_RETURN(layer.wk, PackProjection(sources, i, Projection::kKey));
    XC_ASSIGN_OR_RETURN(layer.wv,
                        PackProjection(sources, i, Projection::kValue));
    layer.direct = i < base.layers;
    const int bits = layer.direct ? base.bits : quant.bits;
    layer.coder.emplace(
        per_token
            ? BlockCoder::PerToken(shape.d_model, quant, bits, rotate, isa)
            : BlockCoder::PerChannel(shape.d_model, quant, bits, isa));
  }
  return NewCrossLayerCodec(std::move(canonical), shape, prediction,
                            std::move(layers), isa);
}

}  // namespace xcache
