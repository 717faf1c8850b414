// Codec kivi, a baseline (Liu et al., KIVI, arXiv 2402.02750): K as it leaves
// W_k, before RoPE, quantized per channel; V per token. No profile, no products
// at remat: what a K/V cache can do without X.
#include <algorithm>
#include <memory>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/xcache/block_coder.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/quant_options.h"

namespace xcache {
namespace {

class Kivi final : public Codec {
 public:
  Kivi(CodecSpec spec, const CodecShape& shape, BlockCoder k_coder,
       BlockCoder v_coder, Isa isa)
      : spec_(std::move(spec)),
        shape_(shape),
        k_coder_(std::move(k_coder)),
        v_coder_(std::move(v_coder)),
        all_finite_(GetCodecKernels(isa).all_finite) {}

  const CodecSpec& spec() const override { return spec_; }
  unsigned live_rows() const override { return kLiveKvPre; }
  RematStage remat_stage() const override { return RematStage::kPre; }
  size_t payload_at(int layer) const override {
    return static_cast<size_t>(layer) * layer_bytes();
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
    for (int i = range.begin; i < range.end; ++i) {
      const LayerRows in = rows(i);
      XC_RETURN_IF_ERROR(
          CheckRows("K", in.k_pre, shape_.kv_dim, first_row, i, all_finite_));
      XC_RETURN_IF_ERROR(
          CheckRows("V", in.v_pre, shape_.kv_dim, first_row, i, all_finite_));
      uint8_t* out = payload.data() + payload_at(i);
      k_coder_.Encode(in.k_pre, first_row, out);
      v_coder_.Encode(in.v_pre, first_row, out + k_coder_.bytes());
    }
    return absl::OkStatus();
  }

  absl::Status RematLayers(LayerRange range, std::span<const uint8_t> payload,
                           int /*first_row*/,
                           const RematSink& sink) const override {
    if (payload.size() != payload_bytes()) {
      return WrongPayloadSize(payload_bytes(), payload.size());
    }
    const size_t n = kBlockTokens * static_cast<size_t>(shape_.kv_dim);
    std::vector<float> k(n), v(n);
    for (int i = range.begin; i < range.end; ++i) {
      const uint8_t* in = payload.data() + payload_at(i);
      XC_RETURN_IF_ERROR(k_coder_.Decode(in, k.data()));
      XC_RETURN_IF_ERROR(v_coder_.Decode(in + k_coder_.bytes(), v.data()));
      RematRows out;
      out.k_pre = k.data();
      out.v_pre = v.data();
      sink(i, out);
    }
    return absl::OkStatus();
  }

 private:
  size_t layer_bytes() const { return k_coder_.bytes() + v_coder_.bytes(); }

  const CodecSpec spec_;
  const CodecShape shape_;
  const BlockCoder k_coder_, v_coder_;
  const AllFiniteFn all_finite_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Codec>> MakeKivi(
    const CodecSpec& spec, const CodecSources& sources, Isa isa) {
  OptionReader options(spec);
  const bool refined = ReadPreset(options);
  const QuantOptions quant = ReadQuantOptions(options, refined);
  const bool rotate = ReadSwitch(options, "rotate", refined);
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());
  const int k = sources.shape.kv_dim;
  return std::make_unique<const Kivi>(
      std::move(canonical), sources.shape,
      BlockCoder::PerChannel(k, quant, quant.bits, isa),
      BlockCoder::PerToken(k, quant, quant.bits, rotate, isa), isa);
}

}  // namespace xcache
