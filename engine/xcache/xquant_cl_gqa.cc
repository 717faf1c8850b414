// Codec xquant-cl-gqa, for models whose K and V are narrower than X: the
// differences of xquant-cl, seen through the subspace that W_k and W_v read
// (cross_layer.h with U of [W_k | W_v] = U S B^T, at most 2 k columns). What U
// does not span is lost to this layer's X^, and K and V do not see it; a later
// layer's U that does span it finds it among its differences. With Q = I, K and
// V are exact.
#include <algorithm>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/xcache/bit_allocation.h"
#include "engine/xcache/cross_layer.h"
#include "engine/xcache/quant_options.h"

namespace xcache {

absl::StatusOr<std::unique_ptr<const Codec>> MakeXquantClGqa(
    const CodecSpec& spec, const CodecSources& sources, Isa isa) {
  OptionReader options(spec);
  const bool refined = ReadPreset(options);
  const QuantOptions quant = ReadQuantOptions(options, refined);
  const BaseOptions base = ReadBaseOptions(options, quant, 1);
  const AxisOptions axis =
      ReadAxisOptions(options, refined, refined ? "channel" : "token");
  const bool spread = ReadSpread(options, refined && !axis.per_token);
  const Prediction prediction = ReadPrediction(options, refined);
  if (spread && axis.per_token) {
    options.Refuse("alloc=spectrum: expected axis=channel, found axis=token");
  }
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());

  const CodecShape& shape = sources.shape;
  const auto d = static_cast<size_t>(shape.d_model);
  PayloadPlan plan(shape, quant);
  std::vector<CrossLayerMatrices> matrices;
  for (int i = 0; i < shape.num_layers; ++i) {
    const std::span<const float> spectrum =
        sources.profile->matrix(i, "kv_spectrum");
    const std::span<const float> basis = sources.profile->matrix(i, "kv_basis");
    const size_t m = spectrum.size();
    if (m == 0 || basis.size() != m * d) {
      return absl::InternalError(
          absl::StrCat("profile of layer ", i, ": expected d = ", d));
    }
    CrossLayerMatrices& layer = matrices.emplace_back();
    XC_ASSIGN_OR_RETURN(layer.projections, PackKvProjections(sources, i));
    // FP16: what U^T U then lacks of I is part of the closed loop.
    XC_ASSIGN_OR_RETURN(layer.to_latent,
                        PackedFloat::FromWeightRows(
                            static_cast<int>(m), shape.d_model, FloatType::kF16,
                            [&](int row, float* out) {
                              std::copy_n(&basis[static_cast<size_t>(row) * d],
                                          d, out);
                            }));
    XC_ASSIGN_OR_RETURN(layer.from_latent,
                        PackedFloat::FromWeightRows(
                            shape.d_model, static_cast<int>(m), FloatType::kF16,
                            [&](int row, float* out) {
                              for (size_t c = 0; c < m; ++c) {
                                out[c] =
                                    basis[c * d + static_cast<size_t>(row)];
                              }
                            }));
    const bool is_base = i < base.layers;
    const int bits = is_base ? base.bits : quant.bits;
    plan.AddLayer(
        {spread ? PerChannelMatrix(
                      SpreadBits(CrossLayerDeviations(spectrum), bits), quant)
                : MatrixOf(axis, quant, static_cast<int>(m), bits)},
        is_base ? Prediction::kNone : prediction);
  }
  return NewCrossLayerCodec(std::move(canonical), std::move(plan),
                            std::move(matrices), isa);
}

}  // namespace xcache
