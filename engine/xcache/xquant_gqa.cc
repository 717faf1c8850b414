// Codec xquant-gqa, for models whose K and V are narrower than X.
//
// K: W_k = U S B^T offline; the page holds the latent u U S = K B quantized per
// channel. It is taken from the K of the forward pass rather than from u: a
// matrix [k, k] instead of [d, k], and S kept in, since a scale per channel
// does not care and the spectrum tells where bits are worth most
// (alloc=spectrum). Remat multiplies by B^T.
//
// V: the page holds V rotated by random signs and a Hadamard transform,
// quantized per token, and remat turns it back with additions alone. Of the
// bases tried at 2 bits on SmolLM2-135M (KL to FP16 with V alone quantized,
// x 1000), all rotated but the first two: V itself 65, V B_v 36; V 17; V B_v
// 19.8; u U_v = V B_v S_v^-1 19.7. Bits spread along V's spectrum: 55 and more.
// An orthogonal basis costs V's error nothing, so the cheapest is also as good
// as any.
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/kernels/packed.h"
#include "engine/xcache/bit_allocation.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/independent_layers.h"
#include "engine/xcache/quant_options.h"

namespace xcache {
namespace {

struct Basis {
  PackedFloat to_latent;    // [k, k]: K B
  PackedFloat from_latent;  // [k, k]: (K B) B^T
};

class XquantGqa final : public IndependentLayers {
 public:
  XquantGqa(CodecSpec spec, PayloadPlan plan, std::vector<Basis> bases, Isa isa)
      : IndependentLayers(std::move(spec), std::move(plan), isa),
        bases_(std::move(bases)) {}
  unsigned live_rows() const override { return kLiveKvPre; }

 private:
  absl::Status SealLayer(int layer, const LayerRows& rows, int first_row,
                         Buffers& buffers, uint8_t* payload) const override {
    const Basis& basis = bases_[static_cast<size_t>(layer)];
    Encode(layer, 0,
           Project(rows.k_pre, basis.to_latent, first_row, buffers.latent),
           first_row, payload);
    Encode(layer, 1, rows.v_pre, first_row, payload);
    return absl::OkStatus();
  }

  absl::StatusOr<RematRows> RematLayer(int layer, const uint8_t* payload,
                                       int first_row,
                                       Buffers& buffers) const override {
    const Basis& basis = bases_[static_cast<size_t>(layer)];
    XC_RETURN_IF_ERROR(Decode(layer, 0, payload, buffers.latent));
    XC_RETURN_IF_ERROR(Decode(layer, 1, payload, buffers.v));
    return RematRows{.k_pre = Project(buffers.latent.data(), basis.from_latent,
                                      first_row, buffers.k),
                     .v_pre = buffers.v.data()};
  }

  const std::vector<Basis> bases_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Codec>> MakeXquantGqa(
    const CodecSpec& spec, const CodecSources& sources, Isa isa) {
  OptionReader options(spec);
  const bool refined = ReadPreset(options);
  const QuantOptions quant = ReadQuantOptions(options, refined);
  const bool rotated = ReadRotation(options, refined);
  const bool spread = ReadSpread(options, refined);
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());

  const CodecShape& shape = sources.shape;
  const auto k = static_cast<size_t>(shape.kv_dim);
  PayloadPlan plan(shape, quant);
  std::vector<Basis> bases;
  for (int i = 0; i < shape.num_layers; ++i) {
    const std::span<const float> spectrum =
        sources.profile->matrix(i, "k_spectrum");
    const std::span<const float> basis = sources.profile->matrix(i, "k_basis");
    if (spectrum.size() != k || basis.size() != k * k) {
      return absl::InternalError(
          absl::StrCat("profile of layer ", i, ": expected k = ", k));
    }
    Basis& packed = bases.emplace_back();
    XC_ASSIGN_OR_RETURN(packed.to_latent,
                        PackedFloat::FromMatrix(basis.data(), shape.kv_dim,
                                                shape.kv_dim, 1, shape.kv_dim));
    XC_ASSIGN_OR_RETURN(packed.from_latent,
                        PackedFloat::FromMatrix(basis.data(), shape.kv_dim,
                                                shape.kv_dim, shape.kv_dim, 1));
    plan.AddLayer({PerChannelMatrix(spread ? SpreadBits(spectrum, quant.bits)
                                           : std::vector<int>(k, quant.bits),
                                    quant),
                   PerTokenMatrix(shape.kv_dim, quant, quant.bits, rotated)});
  }
  return std::make_unique<const XquantGqa>(
      std::move(canonical), std::move(plan), std::move(bases), isa);
}

}  // namespace xcache
