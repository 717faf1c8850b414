// Codec xquant, for models with as many KV heads as query heads: the page holds
// the unit rows u, d values a token where K and V are 2 d, and remat multiplies
// by W_k and W_v with the norm's gain folded in. Works where K and V are
// narrower too, but wins nothing there.
#include <memory>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/packed.h"
#include "engine/xcache/block_coder.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/projection.h"
#include "engine/xcache/quant_options.h"

namespace xcache {
namespace {

struct Layer {
  PackedFloat wk, wv;  // [d, k] each
};

class Xquant final : public Codec {
 public:
  Xquant(CodecSpec spec, const CodecShape& shape, std::vector<Layer> layers,
         BlockCoder coder, Isa isa)
      : spec_(std::move(spec)),
        shape_(shape),
        layers_(std::move(layers)),
        coder_(std::move(coder)),
        kernels_(GetKernels(isa)),
        all_finite_(GetCodecKernels(isa).all_finite) {}

  const CodecSpec& spec() const override { return spec_; }
  unsigned live_rows() const override { return kLiveUnitX; }
  RematStage remat_stage() const override { return RematStage::kPre; }
  size_t payload_at(int layer) const override {
    return static_cast<size_t>(layer) * coder_.bytes();
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
    uint8_t* out = payload.data() + payload_at(range.begin);
    for (int i = range.begin; i < range.end; ++i) {
      const float* x = rows(i).unit_x;
      XC_RETURN_IF_ERROR(
          CheckRows("X", x, shape_.d_model, first_row, i, all_finite_));
      coder_.Encode(x, first_row, out);
      out += coder_.bytes();
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
    const uint8_t* in = payload.data() + payload_at(range.begin);
    for (int i = range.begin; i < range.end; ++i) {
      XC_RETURN_IF_ERROR(coder_.Decode(in, x.data()));
      const Layer& layer = layers_[static_cast<size_t>(i)];
      ProjectRows(kernels_, x.data(), layer.wk, first_row, kBlockTokens,
                  keys.data());
      ProjectRows(kernels_, x.data(), layer.wv, first_row, kBlockTokens,
                  values.data());
      RematRows out;
      out.k_pre = keys.data();
      out.v_pre = values.data();
      sink(i, out);
      in += coder_.bytes();
    }
    return absl::OkStatus();
  }

 private:
  const CodecSpec spec_;
  const CodecShape shape_;
  const std::vector<Layer> layers_;
  const BlockCoder coder_;
  const Kernels& kernels_;
  const AllFiniteFn all_finite_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Codec>> MakeXquant(
    const CodecSpec& spec, const CodecSources& sources, Isa isa) {
  OptionReader options(spec);
  const bool refined = ReadPreset(options);
  const QuantOptions quant = ReadQuantOptions(options, refined);
  const bool per_token =
      options.Choice("axis", {"channel", "token"}, "token") == "token";
  const bool rotate = ReadSwitch(options, "rotate", refined && per_token);
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());
  XC_RETURN_IF_ERROR(CheckRotation(canonical, rotate, per_token));

  const CodecShape& shape = sources.shape;
  std::vector<Layer> layers(static_cast<size_t>(shape.num_layers));
  for (int i = 0; i < shape.num_layers; ++i) {
    Layer& layer = layers[static_cast<size_t>(i)];
    XC_ASSIGN_OR_RETURN(layer.wk, PackProjection(sources, i, Projection::kKey));
    XC_ASSIGN_OR_RETURN(layer.wv,
                        PackProjection(sources, i, Projection::kValue));
  }
  BlockCoder coder =
      per_token
          ? BlockCoder::PerToken(shape.d_model, quant, quant.bits, rotate, isa)
          : BlockCoder::PerChannel(shape.d_model, quant, quant.bits, isa);
  return std::make_unique<const Xquant>(
      std::move(canonical), shape, std::move(layers), std::move(coder), isa);
}

}  // namespace xcache
