// xquant-cl and xquant-cl-gqa on the device: X^ of engine/xcache/cross_layer.h
// in FP32, a batch's blocks together, from layer to layer. Where U = I it has
// the CPU's very bits; else the product with U^T is one of FP16 matrices, and
// X^ differs by the rounding of each layer's differences to 11 bits. K and V
// are then one product, as for xquant, in one kernel or in two steps: X^ is
// rounded to FP16 on the way.
//
// Sealing computes X^ anew as the CPU does, by exact products: the loop that is
// closed is the CPU's, to the bit, and so are the bytes.
#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/device/codecs/codec.h"
#include "engine/device/codecs/matrices.h"
#include "engine/device/memory.h"
#include "engine/device/weights.h"
#include "engine/types.h"

namespace xcache::cuda {
namespace {

PredictionKind KindOf(Prediction prediction) {
  switch (prediction) {
    case Prediction::kNone:
    case Prediction::kUnit:
      return PredictionKind::kUnit;
    case Prediction::kResidual:
      return PredictionKind::kResidual;
    case Prediction::kFit:
      return PredictionKind::kFit;
  }
  return PredictionKind::kUnit;
}

class CrossLayer final : public MatrixCodec {
 public:
  explicit CrossLayer(const DeviceCodecSources& sources)
      : MatrixCodec(sources),
        m_(plan_.matrices().front().num_channels),
        projections_(*sources.ops),
        bases_(*sources.ops) {}

  absl::Status Upload(const DeviceCodecSources& sources) override {
    XC_RETURN_IF_ERROR(MatrixCodec::Upload(sources));
    XC_RETURN_IF_ERROR(UploadProjections(sources, nullptr, projections_));
    return sources.profile == nullptr ? absl::OkStatus() : UploadBases(sources);
  }

  // The differences in U's columns, then X^.
  int latent_width() const override {
    if (!fused_) return std::max(d_, m_);
    return has_basis() ? m_ : 0;
  }
  int sums_width() const override { return d_; }
  void Advance(DeviceOps& ops, int layer, const RematBatch& batch,
               const RematScratch& scratch) const override {
    if (const auto at = plan_.layer(layer).scales_at; at.has_value()) {
      ScaleSumsArgs scale;
      scale.payloads = batch.payloads;
      scale.offset = static_cast<int64_t>(*at);
      scale.sums = scratch.sums;
      scale.num_blocks = batch.num_blocks;
      scale.width = d_;
      ops.ScaleSums(scale);
    }
    AddDifferences(ops, layer, batch, scratch);
  }
  PreRows Remat(DeviceOps& ops, int layer, const RematBatch& batch,
                const RematScratch& scratch) const override {
    Advance(ops, layer, batch, scratch);
    const uint16_t* w =
        projections_.as<uint16_t>() + int64_t{layer} * 2 * kv_dim_ * d_;
    if (fused_) {
      FusedRematArgs fused;
      fused.invalid = batch.invalid;
      fused.num_blocks = batch.num_blocks;
      fused.sums = scratch.sums;
      fused.sums_width = d_;
      fused.w = w;
      fused.store = batch.store;
      ops.FusedRemat(fused);
      return {};
    }
    RoundSumsArgs round;
    round.sums = scratch.sums;
    round.blocks = batch.targets;
    round.out = scratch.latent;
    round.invalid = batch.invalid;
    round.num_blocks = batch.num_blocks;
    round.width = d_;
    ops.RoundSums(round);
    return ProjectToKv(ops, batch, scratch, w, 2 * kv_dim_, d_, kv_dim_);
  }

  // X^, the differences, the latent.
  size_t seal_floats() const override {
    return static_cast<size_t>(2 * d_ + m_) * kBlockTokens;
  }
  void Seal(DeviceOps& ops, int layer, const SealBatch& batch,
            const SealScratch& scratch) const override {
    const int64_t rows = int64_t{batch.num_blocks} * kBlockTokens;
    float* sums = scratch.rows;
    float* differences = sums + rows * d_;
    float* latent = differences + rows * d_;
    Subtract(ops, layer, batch, sums, differences);

    EncodeArgs encode = EncodeArgsOf(batch, scratch);
    encode.sources = batch.unit_x;
    encode.rows = differences;
    encode.scratch = latent;
    ExactProductArgs product;
    product.sources = batch.unit_x;
    product.w_f16 = BasisOf(layer);
    product.invalid = batch.invalid;
    product.num_blocks = batch.num_blocks;
    if (has_basis()) {
      product.x = differences;
      product.transposed = true;
      product.out = latent;
      product.width = m_;
      product.depth = d_;
      ops.ExactProduct(product);
      encode.rows = latent;
      encode.scratch = differences;
    }
    matrices_.Encode(ops, layer, 0, encode);

    DecodeArgs decode = DecodeArgsOf(batch);
    decode.out = has_basis() ? latent : sums;
    decode.out_stride = m_;
    decode.add = !has_basis() && predicted(layer);
    matrices_.Decode(ops, layer, 0, decode);
    if (!has_basis()) return;
    product.x = latent;
    product.transposed = false;
    product.out = sums;
    product.width = d_;
    product.depth = m_;
    product.add = predicted(layer);
    ops.ExactProduct(product);
  }

 private:
  bool has_basis() const { return bases_.bytes() > 0; }
  // Whether X^ of the layer before is built upon.
  bool predicted(int layer) const {
    return plan_.layer(layer).prediction != Prediction::kNone;
  }

  // Null without a basis.
  const uint16_t* BasisOf(int layer) const {
    if (!has_basis()) return nullptr;
    return bases_.as<uint16_t>() + int64_t{layer} * d_ * m_;
  }

  // The rows less P, and X^ to P; the rows themselves in a base layer.
  void Subtract(DeviceOps& ops, int layer, const SealBatch& batch, float* sums,
                float* differences) const {
    const PayloadPlan::Layer& l = plan_.layer(layer);
    const int64_t layer_offset = int64_t{layer} * kBlockTokens * d_;
    if (predicted(layer)) {
      PredictArgs predict;
      predict.sources = batch.unit_x;
      predict.layer_offset = layer_offset;
      predict.rms = batch.rms;
      predict.layer = layer;
      predict.payload_offset = static_cast<int64_t>(l.scales_at.value_or(0));
      predict.sums = sums;
      predict.out = differences;
      predict.invalid = batch.invalid;
      predict.num_blocks = batch.num_blocks;
      predict.width = d_;
      predict.kind = KindOf(l.prediction);
      ops.Predict(predict);
      return;
    }
    GatherArgs gather;
    gather.sources = batch.unit_x;
    gather.layer_offset = layer_offset;
    gather.out = differences;
    gather.invalid = batch.invalid;
    gather.num_blocks = batch.num_blocks;
    gather.width = d_;
    ops.Gather(gather);
  }

  // P to X^: adds what the payload gives back; a base layer's is all there is.
  void AddDifferences(DeviceOps& ops, int layer, const RematBatch& batch,
                      const RematScratch& scratch) const {
    DecodeArgs decode = DecodeArgsOf(batch);
    decode.out_stride = m_;
    if (!has_basis()) {
      decode.out = scratch.sums;
      decode.add = predicted(layer);
      matrices_.Decode(ops, layer, 0, decode);
      return;
    }
    decode.out_f16 = scratch.latent;
    matrices_.Decode(ops, layer, 0, decode);
    GemmArgs gemm;
    gemm.a = scratch.latent;
    gemm.w = BasisOf(layer);
    gemm.out = scratch.sums;
    gemm.out_stride = d_;
    gemm.num_rows = batch.num_blocks * kBlockTokens;
    gemm.n = d_;
    gemm.k = m_;
    gemm.type = HalfType::kF16;
    gemm.add = predicted(layer);
    ops.Gemm(gemm);
  }

  absl::Status UploadBases(const DeviceCodecSources& sources) {
    const auto d = static_cast<size_t>(d_);
    const auto m = static_cast<size_t>(m_);
    const auto layers = static_cast<size_t>(plan_.num_layers());
    XC_RETURN_IF_ERROR(bases_.Reserve(layers * d * m * sizeof(uint16_t)));
    PinnedMemory staging(*sources.ops);
    XC_RETURN_IF_ERROR(staging.Reserve(UploadStagingBytes(m_)));
    for (size_t i = 0; i < layers; ++i) {
      // The profile has U^T, a row for each column of U.
      const std::span<const float> basis =
          sources.profile->matrix(static_cast<int>(i), "kv_basis");
      const auto fill = [&](int64_t row, float* out) {
        for (size_t c = 0; c < m; ++c) {
          out[c] = basis[c * d + static_cast<size_t>(row)];
        }
      };
      UploadRows(*sources.ops, *sources.pool, staging, d_, m_, HalfType::kF16,
                 fill, bases_.as<uint16_t>() + i * d * m);
    }
    return absl::OkStatus();
  }

  const int m_;               // columns of U; d where U = I
  DeviceMemory projections_;  // [layers, 2 kv_dim, d] FP16
  DeviceMemory bases_;        // [layers, d, m] FP16: U; empty where U = I
};

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceCrossLayer(
    const DeviceCodecSources& sources) {
  const std::vector<PayloadMatrix>& matrices = sources.codec->plan().matrices();
  const bool alike = std::all_of(
      matrices.begin(), matrices.end(), [&](const PayloadMatrix& matrix) {
        return matrix.num_channels == matrices.front().num_channels;
      });
  if (!alike) return nullptr;
  return MakeMatrixCodec<CrossLayer>(sources);
}

}  // namespace xcache::cuda
