// Codec kivi, a baseline (Liu et al., KIVI, arXiv 2402.02750): K as it leaves
// W_k, before RoPE, quantized per channel; V per token. No profile, no products
// at remat: what a K/V cache can do without X.
#include <memory>
#include <utility>

#include "engine/base/status_macros.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/independent_layers.h"
#include "engine/xcache/quant_options.h"

namespace xcache {
namespace {

class Kivi final : public IndependentLayers {
 public:
  using IndependentLayers::IndependentLayers;
  unsigned live_rows() const override { return kLiveKvPre; }

 private:
  absl::Status SealLayer(int layer, const LayerRows& rows, int first_row,
                         Buffers& /*buffers*/,
                         uint8_t* payload) const override {
    Encode(layer, 0, rows.k_pre, first_row, payload);
    Encode(layer, 1, rows.v_pre, first_row, payload);
    return absl::OkStatus();
  }

  absl::StatusOr<RematRows> RematLayer(int layer, const uint8_t* payload,
                                       int /*first_row*/,
                                       Buffers& buffers) const override {
    XC_RETURN_IF_ERROR(Decode(layer, 0, payload, buffers.k));
    XC_RETURN_IF_ERROR(Decode(layer, 1, payload, buffers.v));
    return RematRows{.k_pre = buffers.k.data(), .v_pre = buffers.v.data()};
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Codec>> MakeKivi(
    const CodecSpec& spec, const CodecSources& sources, Isa isa) {
  OptionReader options(spec);
  const bool refined = ReadPreset(options);
  const QuantOptions quant = ReadQuantOptions(options, refined);
  const bool rotated = ReadRotation(options, refined);
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());

  const int k = sources.shape.kv_dim;
  PayloadPlan plan(sources.shape, quant);
  for (int i = 0; i < sources.shape.num_layers; ++i) {
    plan.AddLayer({MatrixOf({.per_token = false}, quant, k, quant.bits),
                   PerTokenMatrix(k, quant, quant.bits, rotated)});
  }
  return std::make_unique<const Kivi>(std::move(canonical), std::move(plan),
                                      isa);
}

}  // namespace xcache
