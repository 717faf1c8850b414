// Codec xquant, for models with as many KV heads as query heads: the page holds
// the unit rows u, d values a token where K and V are 2 d, and remat multiplies
// by W_k and W_v with the norm's gain folded in. Works where K and V are
// narrower too, but wins nothing there.
#include <memory>
#include <utility>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/independent_layers.h"
#include "engine/xcache/projection.h"
#include "engine/xcache/quant_options.h"

namespace xcache {
namespace {

class Xquant final : public IndependentLayers {
 public:
  Xquant(CodecSpec spec, PayloadPlan plan,
         std::vector<KvProjections> projections, Isa isa)
      : IndependentLayers(std::move(spec), std::move(plan), isa),
        projections_(std::move(projections)) {}
  unsigned live_rows() const override { return kLiveUnitX; }

 private:
  absl::Status SealLayer(int layer, const LayerRows& rows, int first_row,
                         Buffers& /*buffers*/,
                         uint8_t* payload) const override {
    Encode(layer, 0, rows.unit_x, first_row, payload);
    return absl::OkStatus();
  }

  absl::StatusOr<RematRows> RematLayer(int layer, const uint8_t* payload,
                                       int first_row,
                                       Buffers& buffers) const override {
    XC_RETURN_IF_ERROR(Decode(layer, 0, payload, buffers.latent));
    const KvProjections& w = projections_[static_cast<size_t>(layer)];
    const float* x = buffers.latent.data();
    return RematRows{.k_pre = Project(x, w.k, first_row, buffers.k),
                     .v_pre = Project(x, w.v, first_row, buffers.v)};
  }

  const std::vector<KvProjections> projections_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Codec>> MakeXquant(
    const CodecSpec& spec, const CodecSources& sources, Isa isa) {
  OptionReader options(spec);
  const bool refined = ReadPreset(options);
  const QuantOptions quant = ReadQuantOptions(options, refined);
  const AxisOptions axis = ReadAxisOptions(options, refined, "token");
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());

  const CodecShape& shape = sources.shape;
  PayloadPlan plan(shape, quant);
  std::vector<KvProjections> projections;
  for (int i = 0; i < shape.num_layers; ++i) {
    plan.AddLayer({MatrixOf(axis, quant, shape.d_model, quant.bits)});
    XC_ASSIGN_OR_RETURN(projections.emplace_back(),
                        PackKvProjections(sources, i));
  }
  return std::make_unique<const Xquant>(std::move(canonical), std::move(plan),
                                        std::move(projections), isa);
}

}  // namespace xcache
