// Codec xquant, for models with as many KV heads as query heads: the page holds
// the unit rows u, d values a token where K and V are 2 d, and remat multiplies
// by W_k and W_v with the norm's gain folded in. Works where K and V are
// narrower too, but wins nothing there.
#include <memory>
#include <variant>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/packed.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/latent_coder.h"
#include "engine/xcache/quant_options.h"
#include "engine/xcache/token_coder.h"

namespace xcache {
namespace {

struct Layer {
  PackedFloat wk, wv;  // [d, k] each
};

class Xquant final : public Codec {
 public:
  Xquant(CodecSpec spec, const CodecShape& shape, std::vector<Layer> layers,
         std::variant<TokenCoder, LatentCoder> coder, Isa isa)
      : spec_(std::move(spec)),
        shape_(shape),
        layers_(std::move(layers)),
        coder_(std::move(coder)),
        kernels_(GetKernels(isa)),
        all_finite_(GetCodecKernels(isa).all_finite) {
    layer_bytes_ = std::visit([](const auto& c) { return c.bytes(); }, coder_);
  }

  const CodecSpec& spec() const override { return spec_; }
  unsigned live_rows() const override { return kLiveUnitX; }
  RematStage remat_stage() const override { return RematStage::kPre; }
  size_t payload_bytes() const override {
    return layers_.size() * layer_bytes_;
  }

  int num_layers() const override { return shape_.num_layers; }
  bool layers_independent() const override { return true; }

  absl::Status SealLayers(LayerRange range,
                          const std::function<LayerRows(int layer)>& rows,
                          int first_row,
                          std::span<uint8_t> payload) const override {
    if (payload.size() != payload_bytes()) {
      return WrongPayloadSize(payload_bytes(), payload.size());
    }
    uint8_t* out =
        payload.data() + static_cast<size_t>(range.begin) * layer_bytes_;
    for (int i = range.begin; i < range.end; ++i) {
      const float* x = rows(i).unit_x;
      XC_RETURN_IF_ERROR(
          CheckRows("X", x, shape_.d_model, first_row, i, all_finite_));
      if (const auto* per_token = std::get_if<TokenCoder>(&coder_)) {
        per_token->Encode(x, first_row, out);
      } else {
        std::get<LatentCoder>(coder_).Encode(x, shape_.d_model, first_row, out);
      }
      out += layer_bytes_;
    }
    return absl::OkStatus();
  }

  absl::Status RematLayers(LayerRange range, std::span<const uint8_t> payload,
                           int first_row,
                           const RematSink& sink) const override {
    if (payload.size() != payload_bytes()) {
      return WrongPayloadSize(payload_bytes(), payload.size());
    }
    const auto d = static_cast<size_t>(shape_.d_model);
    const auto k = static_cast<size_t>(shape_.kv_dim);
    std::vector<float> x(kBlockTokens * d);
    std::vector<float> keys(kBlockTokens * k), values(kBlockTokens * k);
    const uint8_t* in =
        payload.data() + static_cast<size_t>(range.begin) * layer_bytes_;
    for (int i = range.begin; i < range.end; ++i) {
      if (const auto* per_token = std::get_if<TokenCoder>(&coder_)) {
        XC_RETURN_IF_ERROR(per_token->Decode(in, x.data()));
      } else {
        XC_RETURN_IF_ERROR(
            std::get<LatentCoder>(coder_).Decode(in, x.data(), shape_.d_model));
      }
      const Layer& layer = layers_[static_cast<size_t>(i)];
      Multiply(x.data(), layer.wk, first_row, keys.data());
      Multiply(x.data(), layer.wv, first_row, values.data());
      RematRows out;
      out.k_pre = keys.data();
      out.v_pre = values.data();
      sink(i, out);
      in += layer_bytes_;
    }
    return absl::OkStatus();
  }

 private:
  void Multiply(const float* x, const PackedFloat& w, int first_row,
                float* out) const {
    FloatMatmulArgs args;
    args.a = x + int64_t{first_row} * shape_.d_model;
    args.a_stride = shape_.d_model;
    args.num_rows = kBlockTokens - first_row;
    args.b = w.view();
    args.out = out + int64_t{first_row} * shape_.kv_dim;
    args.out_stride = shape_.kv_dim;
    kernels_.float_matmul(args, 0, w.num_panels());
  }

  const CodecSpec spec_;
  const CodecShape shape_;
  const std::vector<Layer> layers_;
  const std::variant<TokenCoder, LatentCoder> coder_;
  const Kernels& kernels_;
  const AllFiniteFn all_finite_;
  size_t layer_bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Codec>> MakeXquant(
    const CodecSpec& spec, const CodecSources& sources, Isa isa) {
  OptionReader options(spec);
  const bool refined = ReadPreset(options);
  const QuantOptions quant = ReadQuantOptions(options, refined);
  const bool per_token =
      options.Choice("axis", {"channel", "token"}, "token") == "token";
  // Scales per channel already fit outlier channels; a rotation would spread
  // them over the others.
  const bool rotate = ReadSwitch(options, "rotate", refined && per_token);
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());
  if (rotate && !per_token) {
    return absl::InvalidArgumentError(
        "codec xquant: rotate=on: expected axis=token, found axis=channel");
  }

  const CodecShape& shape = sources.shape;
  std::vector<Layer> layers(static_cast<size_t>(shape.num_layers));
  for (int i = 0; i < shape.num_layers; ++i) {
    // FP16 halves what is read of them; its 11 bits are finer than any weight
    // that was quantized.
    const auto pack = [&](Projection projection) {
      return PackedFloat::FromWeightRows(
          shape.kv_dim, shape.d_model, FloatType::kF16,
          [&](int row, float* out) {
            sources.weights(i, projection, row, out);
          });
    };
    Layer& layer = layers[static_cast<size_t>(i)];
    XC_ASSIGN_OR_RETURN(layer.wk, pack(Projection::kKey));
    XC_ASSIGN_OR_RETURN(layer.wv, pack(Projection::kValue));
  }
  using Coder = std::variant<TokenCoder, LatentCoder>;
  Coder coder =
      per_token ? Coder(TokenCoder(shape.d_model, quant, rotate, isa))
                : Coder(LatentCoder(
                      PerChannelTiles(
                          std::vector<int>(static_cast<size_t>(shape.d_model),
                                           quant.bits),
                          kBlockTokens, quant.group),
                      quant.scales, quant.search, isa));
  return std::make_unique<const Xquant>(
      std::move(canonical), shape, std::move(layers), std::move(coder), isa);
}

}  // namespace xcache
