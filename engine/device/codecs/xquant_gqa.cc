// xquant-gqa on the device: K's latent to FP16 and one product with the basis
// B^T as FP16, in one kernel or in two steps; V is rotated back with additions
// alone, to the CPU's very bits. K differs from the CPU's by the rounding of
// latent and basis to 11 bits.
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/device/codecs/codec.h"
#include "engine/device/codecs/matrices.h"
#include "engine/device/memory.h"
#include "engine/device/weights.h"
#include "engine/types.h"
#include "engine/xcache/bit_allocation.h"

namespace xcache::cuda {
namespace {

class XquantGqa final : public DeviceCodec {
 public:
  struct Layer {
    size_t k = 0;  // matrix
    int64_t k_at = 0;
    int64_t v_at = 0;
  };
  struct Tables {
    Tables(DeviceOps& ops, const MatrixForm& form)
        : matrices(ops, form), from_latent(ops), to_latent(ops) {}
    DeviceMatrices matrices;
    size_t v = 0;              // matrix, the same for every layer
    DeviceMemory from_latent;  // [layers, kv_dim, kv_dim] FP16
    DeviceMemory to_latent;    // [layers, kv_dim, kv_dim] FP32
  };
  XquantGqa(std::vector<Layer> layers, std::unique_ptr<const Tables> tables,
            int kv_dim, bool fused)
      : layers_(std::move(layers)),
        tables_(std::move(tables)),
        kv_dim_(kv_dim),
        fused_(fused) {}

  int latent_width() const override { return fused_ ? 0 : kv_dim_; }
  PreRows Remat(DeviceOps& ops, int layer, const RematBatch& batch,
                const RematScratch& scratch) const override {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    const uint16_t* w = tables_->from_latent.as<uint16_t>() +
                        int64_t{layer} * kv_dim_ * kv_dim_;
    if (fused_) {
      FusedRematArgs fused;
      fused.payloads = batch.payloads;
      fused.invalid = batch.invalid;
      fused.num_blocks = batch.num_blocks;
      fused.latent = tables_->matrices.PerChannel(l.k, l.k_at);
      fused.w = w;
      fused.v = tables_->matrices.PerToken(tables_->v, l.v_at);
      fused.store = batch.store;
      ops.FusedRemat(fused);
      return {};
    }
    DecodeArgs decode = DecodeArgsOf(batch);
    decode.out_f16 = scratch.latent;
    decode.out_stride = kv_dim_;
    tables_->matrices.Decode(ops, l.k, l.k_at, decode);
    const PreRows rows =
        ProjectToKv(ops, batch, scratch, w, kv_dim_, kv_dim_, kv_dim_);
    decode.out_f16 = nullptr;
    decode.out = scratch.kv + kv_dim_;
    decode.out_stride = rows.stride;
    tables_->matrices.Decode(ops, tables_->v, l.v_at, decode);
    return rows;
  }

  size_t seal_floats() const override {
    return static_cast<size_t>(kv_dim_) * kBlockTokens;
  }
  size_t seal_units() const override { return tables_->matrices.max_units(); }
  void Seal(DeviceOps& ops, int layer, const SealBatch& batch,
            const SealScratch& scratch) const override {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    ExactProductArgs product;
    product.sources = batch.k_pre;
    product.layer_offset = int64_t{layer} * kBlockTokens * kv_dim_;
    product.w =
        tables_->to_latent.as<float>() + int64_t{layer} * kv_dim_ * kv_dim_;
    product.out = scratch.rows;
    product.invalid = batch.invalid;
    product.num_blocks = batch.num_blocks;
    product.width = kv_dim_;
    product.depth = kv_dim_;
    ops.ExactProduct(product);
    EncodeArgs encode;
    encode.sources = batch.k_pre;
    encode.rows = scratch.rows;
    encode.ranges = scratch.ranges;
    encode.invalid = batch.invalid;
    encode.num_blocks = batch.num_blocks;
    tables_->matrices.Encode(ops, l.k, l.k_at, encode);

    encode.sources = batch.v_pre;
    encode.rows = nullptr;
    encode.layer_offset = product.layer_offset;
    encode.scratch = scratch.rows;
    tables_->matrices.Encode(ops, tables_->v, l.v_at, encode);
  }

 private:
  const std::vector<Layer> layers_;
  const std::unique_ptr<const Tables> tables_;
  const int kv_dim_;
  const bool fused_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceXquantGqa(
    const DeviceCodecSources& sources) {
  const HyperParams& h = sources.model->hparams();
  const int kv_dim = h.kv_dim();
  const auto k = static_cast<size_t>(kv_dim);
  SpecOptions options(sources.codec->spec());
  const int bits = options.TakeInt("bits").value_or(0);
  const std::optional<MatrixForm> form = TakeMatrixForm(options);
  const bool rotate = options.Take("rotate") == "on";
  const bool spread = options.Take("alloc") == "spectrum";
  if (!options.complete() || !form.has_value() || bits < 1 || bits > 8) {
    return nullptr;
  }

  DeviceOps& ops = *sources.ops;
  auto tables = std::make_unique<XquantGqa::Tables>(ops, *form);
  tables->v = tables->matrices.AddPerToken(kv_dim, bits, rotate);
  std::vector<XquantGqa::Layer> layers;
  size_t at = 0;
  for (int i = 0; i < h.num_layers; ++i) {
    const std::vector<int> widths =
        spread ? SpreadBits(sources.profile->matrix(i, "k_spectrum"), bits)
               : std::vector<int>(k, bits);
    if (widths.size() != k) return nullptr;
    XquantGqa::Layer layer;
    layer.k = tables->matrices.AddPerChannel(widths);
    layer.k_at = static_cast<int64_t>(at);
    at += tables->matrices.bytes(layer.k);
    layer.v_at = static_cast<int64_t>(at);
    at += tables->matrices.bytes(tables->v);
    layers.push_back(layer);
  }
  if (at != sources.codec->payload_bytes()) return nullptr;

  XC_RETURN_IF_ERROR(tables->matrices.Upload(ops));
  const size_t elements = static_cast<size_t>(h.num_layers) * k * k;
  XC_RETURN_IF_ERROR(tables->from_latent.Reserve(elements * sizeof(uint16_t)));
  XC_RETURN_IF_ERROR(tables->to_latent.Reserve(elements * sizeof(float)));
  PinnedMemory staging(ops);
  XC_RETURN_IF_ERROR(staging.Reserve(UploadStagingBytes(kv_dim)));
  for (size_t i = 0; i < layers.size(); ++i) {
    // K = latent B^T, and w is [n, k]: row n has what latent channel c gives to
    // channel n of K, the basis' column n.
    const std::span<const float> basis =
        sources.profile->matrix(static_cast<int>(i), "k_basis");
    if (basis.size() != k * k) return nullptr;
    const auto fill = [&](int64_t row, float* out) {
      for (size_t c = 0; c < k; ++c) {
        out[c] = basis[c * k + static_cast<size_t>(row)];
      }
    };
    UploadRows(ops, *sources.pool, staging, kv_dim, kv_dim, HalfType::kF16,
               fill, tables->from_latent.as<uint16_t>() + i * k * k);
    // The latent's channel n is K times the basis' row n.
    ops.CopyToDevice(StreamId::kCompute,
                     tables->to_latent.as<float>() + i * k * k, basis.data(),
                     basis.size_bytes());
    ops.Synchronize(StreamId::kCompute);
  }
  return std::make_unique<const XquantGqa>(std::move(layers), std::move(tables),
                                           kv_dim, UsesFusedRemat(sources));
}

}  // namespace xcache::cuda
