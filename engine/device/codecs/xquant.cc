// xquant on the device: unpack and dequantize to FP16, then one product with
// [W_k; W_v], FP16 with the norm's gain folded in, as the CPU has them; in one
// kernel or in two steps. A rotation of X is folded into them too. So X̂ before
// its rotation, and the turned matrix, are rounded to FP16, where the CPU
// rounds the matrix alone: at most 2^-11 of each value, well below a step of 8
// bits.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/device/codecs/codec.h"
#include "engine/device/codecs/matrices.h"
#include "engine/device/kernels/dequantize.h"
#include "engine/device/memory.h"
#include "engine/types.h"
#include "engine/xcache/tile_coder.h"

namespace xcache::cuda {
namespace {

class Xquant final : public DeviceCodec {
 public:
  struct Tables {
    Tables(DeviceOps& ops, const MatrixForm& form)
        : matrices(ops, form), weights(ops) {}
    DeviceMatrices matrices;  // of one matrix, the same for every layer
    // [layers, 2 kv_dim, d], for X as its page has it, rotated or not.
    DeviceMemory weights;
  };
  Xquant(std::unique_ptr<const Tables> tables, bool per_token, int d,
         int kv_dim, bool fused)
      : tables_(std::move(tables)),
        per_token_(per_token),
        d_(d),
        kv_dim_(kv_dim),
        fused_(fused) {}

  int latent_width() const override { return fused_ ? 0 : d_; }
  PreRows Remat(DeviceOps& ops, int layer, const RematBatch& batch,
                const RematScratch& scratch) const override {
    const uint16_t* w =
        tables_->weights.as<uint16_t>() + int64_t{layer} * 2 * kv_dim_ * d_;
    TokenMatrix tokens;
    ChannelMatrix channels;
    if (per_token_) {
      tokens = tables_->matrices.PerToken(kX, At(layer));
      tokens.rotated = false;  // the weights are
    } else {
      channels = tables_->matrices.PerChannel(kX, At(layer));
    }
    if (fused_) {
      FusedRematArgs fused;
      fused.payloads = batch.payloads;
      fused.invalid = batch.invalid;
      fused.num_blocks = batch.num_blocks;
      fused.x = tokens;
      fused.latent = channels;
      fused.w = w;
      fused.store = batch.store;
      ops.FusedRemat(fused);
      return {};
    }
    DecodeArgs decode = DecodeArgsOf(batch);
    decode.out_f16 = scratch.latent;
    decode.out_stride = d_;
    if (per_token_) {
      ops.DecodeTokens(tokens, decode);
    } else {
      ops.DecodeChannels(channels, decode);
    }
    return ProjectToKv(ops, batch, scratch, w, 2 * kv_dim_, d_, kv_dim_);
  }

  size_t seal_floats() const override {
    return static_cast<size_t>(d_) * kBlockTokens;
  }
  size_t seal_units() const override { return tables_->matrices.max_units(); }
  void Seal(DeviceOps& ops, int layer, const SealBatch& batch,
            const SealScratch& scratch) const override {
    EncodeArgs encode;
    encode.sources = batch.unit_x;
    encode.layer_offset = int64_t{layer} * kBlockTokens * d_;
    encode.scratch = scratch.rows;
    encode.ranges = scratch.ranges;
    encode.invalid = batch.invalid;
    encode.num_blocks = batch.num_blocks;
    tables_->matrices.Encode(ops, kX, At(layer), encode);
  }

 private:
  static constexpr size_t kX = 0;

  int64_t At(int layer) const {
    return layer * static_cast<int64_t>(tables_->matrices.bytes(kX));
  }

  const std::unique_ptr<const Tables> tables_;
  const bool per_token_;
  const int d_;
  const int kv_dim_;
  const bool fused_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceXquant(
    const DeviceCodecSources& sources) {
  const HyperParams& h = sources.model->hparams();
  SpecOptions options(sources.codec->spec());
  const int bits = options.TakeInt("bits").value_or(0);
  const std::optional<MatrixForm> form = TakeMatrixForm(options);
  const bool rotate = options.Take("rotate") == "on";
  const std::string axis = options.Take("axis");
  const bool per_token = axis == "token";
  if (!options.complete() || !form.has_value() || bits < 1 || bits > 8 ||
      (!per_token && axis != "channel") || (rotate && !per_token)) {
    return nullptr;
  }

  DeviceOps& ops = *sources.ops;
  auto tables = std::make_unique<Xquant::Tables>(ops, *form);
  const size_t x = per_token
                       ? tables->matrices.AddPerToken(h.d_model, bits, rotate)
                       : tables->matrices.AddPerChannel(std::vector<int>(
                             static_cast<size_t>(h.d_model), bits));
  if (static_cast<size_t>(h.num_layers) * tables->matrices.bytes(x) !=
      sources.codec->payload_bytes()) {
    return nullptr;
  }
  XC_RETURN_IF_ERROR(tables->matrices.Upload(ops));
  const Rotation rotation(h.d_model, Isa::kRef);
  const auto turn = [&](float* row) {
    if (!rotate) return;
    // With x = D H z / s, signs D and the symmetric H of a piece of s channels,
    // w x = (H D w / s) z.
    rotation.Apply(row, 1, 1);
    for (int i = 0; i < h.d_model; ++i) {
      const int piece = i / kPieceChannels * kPieceChannels;
      const int left = std::min(kPieceChannels, h.d_model - piece);
      row[i] /= static_cast<float>(PieceOf(i - piece, left).size);
    }
  };
  XC_RETURN_IF_ERROR(UploadProjections(sources, turn, tables->weights));
  return std::make_unique<const Xquant>(std::move(tables), per_token, h.d_model,
                                        h.kv_dim(), UsesFusedRemat(sources));
}

}  // namespace xcache::cuda
