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
#include <algorithm>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/packed.h"
#include "engine/xcache/bit_allocation.h"
#include "engine/xcache/block_coder.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/projection.h"
#include "engine/xcache/quant_options.h"

namespace xcache {
namespace {

struct Layer {
  PackedFloat to_latent;    // [k, k]: K B
  PackedFloat from_latent;  // [k, k]: (K B) B^T
  std::unique_ptr<const BlockCoder> k_coder;
  size_t payload_at = 0;
};

class XquantGqa final : public Codec {
 public:
  XquantGqa(CodecSpec spec, const CodecShape& shape, std::vector<Layer> layers,
            BlockCoder v_coder, Isa isa)
      : spec_(std::move(spec)),
        kv_dim_(shape.kv_dim),
        layers_(std::move(layers)),
        v_coder_(std::move(v_coder)),
        kernels_(GetKernels(isa)),
        all_finite_(GetCodecKernels(isa).all_finite) {
    for (Layer& layer : layers_) {
      layer.payload_at = payload_bytes_;
      payload_bytes_ += layer.k_coder->bytes() + v_coder_.bytes();
    }
  }

  const CodecSpec& spec() const override { return spec_; }
  unsigned live_rows() const override { return kLiveKvPre; }
  RematStage remat_stage() const override { return RematStage::kPre; }
  size_t payload_at(int layer) const override {
    return layer == num_layers()
               ? payload_bytes_
               : layers_[static_cast<size_t>(layer)].payload_at;
  }

  int num_layers() const override { return static_cast<int>(layers_.size()); }
  bool layers_independent() const override { return true; }

  absl::Status SealLayers(LayerRange range,
                          const std::function<LayerRows(int layer)>& rows,
                          int first_row,
                          std::span<uint8_t> payload) const override {
    if (payload.size() != payload_bytes_) {
      return WrongPayloadSize(payload_bytes_, payload.size());
    }
    std::vector<float> latent(elements());
    for (int i = range.begin; i < range.end; ++i) {
      const Layer& layer = layers_[static_cast<size_t>(i)];
      const LayerRows in = rows(i);
      XC_RETURN_IF_ERROR(
          CheckRows("K", in.k_pre, kv_dim_, first_row, i, all_finite_));
      XC_RETURN_IF_ERROR(
          CheckRows("V", in.v_pre, kv_dim_, first_row, i, all_finite_));
      ProjectRows(kernels_, in.k_pre, layer.to_latent, first_row, kBlockTokens,
                  latent.data());
      uint8_t* out = payload.data() + layer.payload_at;
      layer.k_coder->Encode(latent.data(), first_row, out);
      v_coder_.Encode(in.v_pre, first_row, out + layer.k_coder->bytes());
    }
    return absl::OkStatus();
  }

  absl::Status RematLayers(LayerRange range, std::span<const uint8_t> payload,
                           int first_row,
                           const RematSink& sink) const override {
    if (payload.size() != payload_bytes_) {
      return WrongPayloadSize(payload_bytes_, payload.size());
    }
    std::vector<float> latent(elements()), k(elements()), v(elements());
    for (int i = range.begin; i < range.end; ++i) {
      const Layer& layer = layers_[static_cast<size_t>(i)];
      const uint8_t* in = payload.data() + layer.payload_at;
      XC_RETURN_IF_ERROR(layer.k_coder->Decode(in, latent.data()));
      ProjectRows(kernels_, latent.data(), layer.from_latent, first_row,
                  kBlockTokens, k.data());
      XC_RETURN_IF_ERROR(
          v_coder_.Decode(in + layer.k_coder->bytes(), v.data()));
      RematRows out;
      out.k_pre = k.data();
      out.v_pre = v.data();
      sink(i, out);
    }
    return absl::OkStatus();
  }

 private:
  size_t elements() const {
    return kBlockTokens * static_cast<size_t>(kv_dim_);
  }

  const CodecSpec spec_;
  const int kv_dim_;
  std::vector<Layer> layers_;
  const BlockCoder v_coder_;
  const Kernels& kernels_;
  const AllFiniteFn all_finite_;
  size_t payload_bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Codec>> MakeXquantGqa(
    const CodecSpec& spec, const CodecSources& sources, Isa isa) {
  OptionReader options(spec);
  const bool refined = ReadPreset(options);
  const QuantOptions quant = ReadQuantOptions(options, refined);
  const bool rotate = ReadSwitch(options, "rotate", refined);
  const bool spread =
      options.Choice("alloc", {"spectrum", "uniform"},
                     refined ? "spectrum" : "uniform") == "spectrum";
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());

  const CodecShape& shape = sources.shape;
  const auto k = static_cast<size_t>(shape.kv_dim);
  std::vector<Layer> layers(static_cast<size_t>(shape.num_layers));
  for (int i = 0; i < shape.num_layers; ++i) {
    const std::span<const float> spectrum =
        sources.profile->matrix(i, "k_spectrum");
    const std::span<const float> basis = sources.profile->matrix(i, "k_basis");
    if (spectrum.size() != k || basis.size() != k * k) {
      return absl::InternalError(
          absl::StrCat("profile of layer ", i, ": expected k = ", k));
    }
    Layer& layer = layers[static_cast<size_t>(i)];
    XC_ASSIGN_OR_RETURN(layer.to_latent,
                        PackedFloat::FromMatrix(basis.data(), shape.kv_dim,
                                                shape.kv_dim, 1, shape.kv_dim));
    XC_ASSIGN_OR_RETURN(layer.from_latent,
                        PackedFloat::FromMatrix(basis.data(), shape.kv_dim,
                                                shape.kv_dim, shape.kv_dim, 1));
    const std::vector<int> widths = spread ? SpreadBits(spectrum, quant.bits)
                                           : std::vector<int>(k, quant.bits);
    layer.k_coder = std::make_unique<const BlockCoder>(
        BlockCoder::PerChannel(widths, quant, isa));
  }
  return std::make_unique<const XquantGqa>(
      std::move(canonical), shape, std::move(layers),
      BlockCoder::PerToken(shape.kv_dim, quant, quant.bits, rotate, isa), isa);
}

}  // namespace xcache
