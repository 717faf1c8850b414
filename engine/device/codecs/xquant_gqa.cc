// xquant-gqa on the device: K's latent to FP16 and one product with the basis
// B^T as FP16, in one kernel or in two steps; V is rotated back with additions
// alone, to the CPU's very bits. K differs from the CPU's by the rounding of
// latent and basis to 11 bits.
#include <memory>
#include <span>

#include "engine/base/status_macros.h"
#include "engine/device/codecs/codec.h"
#include "engine/device/codecs/matrices.h"
#include "engine/device/memory.h"
#include "engine/device/weights.h"
#include "engine/types.h"

namespace xcache::cuda {
namespace {

class XquantGqa final : public MatrixCodec {
 public:
  explicit XquantGqa(const DeviceCodecSources& sources)
      : MatrixCodec(sources),
        from_latent_(*sources.ops),
        to_latent_(*sources.ops) {}

  absl::Status Upload(const DeviceCodecSources& sources) override {
    DeviceOps& ops = *sources.ops;
    XC_RETURN_IF_ERROR(MatrixCodec::Upload(sources));
    const auto k = static_cast<size_t>(kv_dim_);
    const auto layers = static_cast<size_t>(plan_.num_layers());
    XC_RETURN_IF_ERROR(from_latent_.Reserve(layers * k * k * sizeof(uint16_t)));
    XC_RETURN_IF_ERROR(to_latent_.Reserve(layers * k * k * sizeof(float)));
    PinnedMemory staging(ops);
    XC_RETURN_IF_ERROR(staging.Reserve(UploadStagingBytes(kv_dim_)));
    for (size_t i = 0; i < layers; ++i) {
      // K = latent B^T, and w is [n, k]: row n has what latent channel c gives
      // to channel n of K, the basis' column n.
      const std::span<const float> basis =
          sources.profile->matrix(static_cast<int>(i), "k_basis");
      const auto fill = [&](int64_t row, float* out) {
        for (size_t c = 0; c < k; ++c) {
          out[c] = basis[c * k + static_cast<size_t>(row)];
        }
      };
      UploadRows(ops, *sources.pool, staging, kv_dim_, kv_dim_, HalfType::kF16,
                 fill, from_latent_.as<uint16_t>() + i * k * k);
      // The latent's channel n is K times the basis' row n.
      ops.CopyToDevice(StreamId::kCompute, to_latent_.as<float>() + i * k * k,
                       basis.data(), basis.size_bytes());
      ops.Synchronize(StreamId::kCompute);
    }
    return absl::OkStatus();
  }

  int latent_width() const override { return fused_ ? 0 : kv_dim_; }
  PreRows Remat(DeviceOps& ops, int layer, const RematBatch& batch,
                const RematScratch& scratch) const override {
    const uint16_t* w =
        from_latent_.as<uint16_t>() + int64_t{layer} * kv_dim_ * kv_dim_;
    if (fused_) {
      FusedRematArgs fused;
      fused.payloads = batch.payloads;
      fused.invalid = batch.invalid;
      fused.num_blocks = batch.num_blocks;
      fused.latent = matrices_.PerChannel(layer, kLatent);
      fused.w = w;
      fused.v = matrices_.PerToken(layer, kValues);
      fused.store = batch.store;
      ops.FusedRemat(fused);
      return {};
    }
    DecodeArgs decode = DecodeArgsOf(batch);
    decode.out_f16 = scratch.latent;
    decode.out_stride = kv_dim_;
    matrices_.Decode(ops, layer, kLatent, decode);
    const PreRows rows =
        ProjectToKv(ops, batch, scratch, w, kv_dim_, kv_dim_, kv_dim_);
    decode.out_f16 = nullptr;
    decode.out = scratch.kv + kv_dim_;
    decode.out_stride = rows.stride;
    matrices_.Decode(ops, layer, kValues, decode);
    return rows;
  }

  size_t seal_floats() const override {
    return static_cast<size_t>(kv_dim_) * kBlockTokens;
  }
  void Seal(DeviceOps& ops, int layer, const SealBatch& batch,
            const SealScratch& scratch) const override {
    ExactProductArgs product;
    product.sources = batch.k_pre;
    product.layer_offset = int64_t{layer} * kBlockTokens * kv_dim_;
    product.w = to_latent_.as<float>() + int64_t{layer} * kv_dim_ * kv_dim_;
    product.out = scratch.rows;
    product.invalid = batch.invalid;
    product.num_blocks = batch.num_blocks;
    product.width = kv_dim_;
    product.depth = kv_dim_;
    ops.ExactProduct(product);
    EncodeArgs encode = EncodeArgsOf(batch, scratch);
    encode.sources = batch.k_pre;
    encode.rows = scratch.rows;
    matrices_.Encode(ops, layer, kLatent, encode);

    encode.sources = batch.v_pre;
    encode.rows = nullptr;
    encode.layer_offset = product.layer_offset;
    encode.scratch = scratch.rows;
    matrices_.Encode(ops, layer, kValues, encode);
  }

 private:
  static constexpr size_t kLatent = 0;  // K's
  static constexpr size_t kValues = 1;

  DeviceMemory from_latent_;  // [layers, kv_dim, kv_dim] FP16
  DeviceMemory to_latent_;    // [layers, kv_dim, kv_dim] FP32
};

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceXquantGqa(
    const DeviceCodecSources& sources) {
  return MakeMatrixCodec<XquantGqa>(sources);
}

}  // namespace xcache::cuda
