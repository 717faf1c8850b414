// xquant on the device: unpack and dequantize to FP16, then one product with
// [W_k; W_v], FP16 with the norm's gain folded in, as the CPU has them; in one
// kernel or in two steps. A rotation of X is folded into them too. So X̂ before
// its rotation, and the turned matrix, are rounded to FP16, where the CPU
// rounds the matrix alone: at most 2^-11 of each value, well below a step of 8
// bits.
#include <algorithm>
#include <memory>

#include "engine/base/status_macros.h"
#include "engine/device/codecs/codec.h"
#include "engine/device/codecs/matrices.h"
#include "engine/device/kernels/dequantize.h"
#include "engine/device/memory.h"
#include "engine/types.h"
#include "engine/xcache/tile_coder.h"

namespace xcache::cuda {
namespace {

class Xquant final : public MatrixCodec {
 public:
  explicit Xquant(const DeviceCodecSources& sources)
      : MatrixCodec(sources), weights_(*sources.ops) {}

  absl::Status Upload(const DeviceCodecSources& sources) override {
    XC_RETURN_IF_ERROR(MatrixCodec::Upload(sources));
    if (!x().rotated) return UploadProjections(sources, nullptr, weights_);
    const Rotation rotation(d_, Isa::kRef);
    return UploadProjections(
        sources,
        [&](float* row) {
          // With x = D H z / s, signs D and the symmetric H of a piece of s
          // channels, w x = (H D w / s) z.
          rotation.Apply(row, 1, 1);
          for (int i = 0; i < d_; ++i) {
            const int piece = i / kPieceChannels * kPieceChannels;
            const int left = std::min(kPieceChannels, d_ - piece);
            row[i] /= static_cast<float>(PieceOf(i - piece, left).size);
          }
        },
        weights_);
  }

  int latent_width() const override { return fused_ ? 0 : d_; }
  PreRows Remat(DeviceOps& ops, int layer, const RematBatch& batch,
                const RematScratch& scratch) const override {
    const uint16_t* w =
        weights_.as<uint16_t>() + int64_t{layer} * 2 * kv_dim_ * d_;
    const bool per_token = x().axis == GroupAxis::kToken;
    TokenMatrix tokens;
    ChannelMatrix channels;
    if (per_token) {
      tokens = matrices_.PerToken(layer, 0);
      tokens.rotated = false;  // the weights are
    } else {
      channels = matrices_.PerChannel(layer, 0);
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
    if (per_token) {
      ops.DecodeTokens(tokens, decode);
    } else {
      ops.DecodeChannels(channels, decode);
    }
    return ProjectToKv(ops, batch, scratch, w, 2 * kv_dim_, d_, kv_dim_);
  }

  size_t seal_floats() const override {
    return static_cast<size_t>(d_) * kBlockTokens;
  }
  void Seal(DeviceOps& ops, int layer, const SealBatch& batch,
            const SealScratch& scratch) const override {
    EncodeArgs encode = EncodeArgsOf(batch, scratch);
    encode.sources = batch.unit_x;
    encode.layer_offset = int64_t{layer} * kBlockTokens * d_;
    encode.scratch = scratch.rows;
    matrices_.Encode(ops, layer, 0, encode);
  }

 private:
  // The one matrix, the same in every layer.
  const PayloadMatrix& x() const { return plan_.matrices().front(); }

  // [layers, 2 kv_dim, d], for X as its page has it, rotated or not.
  DeviceMemory weights_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceXquant(
    const DeviceCodecSources& sources) {
  return MakeMatrixCodec<Xquant>(sources);
}

}  // namespace xcache::cuda
