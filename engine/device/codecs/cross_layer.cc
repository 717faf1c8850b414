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
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
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

class CrossLayer final : public DeviceCodec {
 public:
  struct Layer {
    // Whether X^ of the layer before is built upon, and where the bytes are
    // that it is multiplied by; -1: it is taken as it is.
    bool predicted = false;
    int64_t scales_at = -1;
    int64_t matrix_at = 0;
    size_t matrix = 0;
  };
  struct Tables {
    Tables(DeviceOps& ops, const MatrixForm& form)
        : matrices(ops, form), projections(ops), bases(ops) {}
    DeviceMatrices matrices;
    DeviceMemory projections;  // [layers, 2 kv_dim, d] FP16
    DeviceMemory bases;        // [layers, d, m] FP16: U; empty where U = I
  };
  CrossLayer(std::vector<Layer> layers, std::unique_ptr<const Tables> tables,
             PredictionKind kind, int d, int m, int kv_dim, bool fused)
      : layers_(std::move(layers)),
        tables_(std::move(tables)),
        kind_(kind),
        d_(d),
        m_(m),
        kv_dim_(kv_dim),
        fused_(fused) {}

  // The differences in U's columns, then X^.
  int latent_width() const override {
    if (!fused_) return std::max(d_, m_);
    return has_basis() ? m_ : 0;
  }
  int sums_width() const override { return d_; }
  void Advance(DeviceOps& ops, int layer, const RematBatch& batch,
               const RematScratch& scratch) const override {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    if (l.scales_at >= 0) {
      ScaleSumsArgs scale;
      scale.payloads = batch.payloads;
      scale.offset = l.scales_at;
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
        tables_->projections.as<uint16_t>() + int64_t{layer} * 2 * kv_dim_ * d_;
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
  size_t seal_units() const override { return tables_->matrices.max_units(); }
  void Seal(DeviceOps& ops, int layer, const SealBatch& batch,
            const SealScratch& scratch) const override {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    const int64_t rows = int64_t{batch.num_blocks} * kBlockTokens;
    float* sums = scratch.rows;
    float* differences = sums + rows * d_;
    float* latent = differences + rows * d_;
    Subtract(ops, layer, batch, sums, differences);

    EncodeArgs encode;
    encode.sources = batch.unit_x;
    encode.rows = differences;
    encode.scratch = latent;
    encode.ranges = scratch.ranges;
    encode.invalid = batch.invalid;
    encode.num_blocks = batch.num_blocks;
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
    tables_->matrices.Encode(ops, l.matrix, l.matrix_at, encode);

    DecodeArgs decode = DecodeArgsOf(batch);
    decode.out = has_basis() ? latent : sums;
    decode.out_stride = m_;
    decode.add = !has_basis() && l.predicted;
    tables_->matrices.Decode(ops, l.matrix, l.matrix_at, decode);
    if (!has_basis()) return;
    product.x = latent;
    product.transposed = false;
    product.out = sums;
    product.width = d_;
    product.depth = m_;
    product.add = l.predicted;
    ops.ExactProduct(product);
  }

 private:
  bool has_basis() const { return tables_->bases.bytes() > 0; }

  const uint16_t* BasisOf(int layer) const {
    return tables_->bases.as<uint16_t>() + int64_t{layer} * d_ * m_;
  }

  // The rows less P, and X^ to P; the rows themselves in a base layer.
  void Subtract(DeviceOps& ops, int layer, const SealBatch& batch, float* sums,
                float* differences) const {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    const int64_t layer_offset = int64_t{layer} * kBlockTokens * d_;
    if (l.predicted) {
      PredictArgs predict;
      predict.sources = batch.unit_x;
      predict.layer_offset = layer_offset;
      predict.rms = batch.rms;
      predict.layer = layer;
      predict.payload_offset = l.scales_at;
      predict.sums = sums;
      predict.out = differences;
      predict.invalid = batch.invalid;
      predict.num_blocks = batch.num_blocks;
      predict.width = d_;
      predict.kind = kind_;
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
    const Layer& l = layers_[static_cast<size_t>(layer)];
    DecodeArgs decode = DecodeArgsOf(batch);
    decode.out_stride = m_;
    if (!has_basis()) {
      decode.out = scratch.sums;
      decode.add = l.predicted;
      tables_->matrices.Decode(ops, l.matrix, l.matrix_at, decode);
      return;
    }
    decode.out_f16 = scratch.latent;
    tables_->matrices.Decode(ops, l.matrix, l.matrix_at, decode);
    GemmArgs gemm;
    gemm.a = scratch.latent;
    gemm.w = BasisOf(layer);
    gemm.out = scratch.sums;
    gemm.out_stride = d_;
    gemm.num_rows = batch.num_blocks * kBlockTokens;
    gemm.n = d_;
    gemm.k = m_;
    gemm.type = HalfType::kF16;
    gemm.add = l.predicted;
    ops.Gemm(gemm);
  }

  const std::vector<Layer> layers_;
  const std::unique_ptr<const Tables> tables_;
  const PredictionKind kind_;
  const int d_;
  const int m_;  // columns of U; d where U = I
  const int kv_dim_;
  const bool fused_;
};

// What both codecs' specs say.
struct CrossLayerOptions {
  MatrixForm form;
  int bits = 0;
  int base_layers = 0;
  int base_bits = 0;
  bool per_token = false;
  bool rotated = false;
  PredictionKind kind = PredictionKind::kUnit;
};
// Nullopt: not what kernels know.
std::optional<CrossLayerOptions> TakeOptions(SpecOptions& options) {
  const std::optional<MatrixForm> form = TakeMatrixForm(options);
  if (!form.has_value()) return std::nullopt;
  CrossLayerOptions out;
  out.form = *form;
  out.bits = options.TakeInt("bits").value_or(0);
  out.base_layers = options.TakeInt("base_layers").value_or(0);
  out.base_bits = options.TakeInt("base_bits").value_or(0);
  const std::string axis = options.Take("axis");
  out.per_token = axis == "token";
  out.rotated = options.Take("rotate") == "on";
  const std::string x = options.Take("x");
  if (x == "residual") out.kind = PredictionKind::kResidual;
  if (x == "fit") out.kind = PredictionKind::kFit;
  const auto in_range = [](int bits) { return bits >= 1 && bits <= 8; };
  if (!options.complete() || !in_range(out.bits) || !in_range(out.base_bits) ||
      out.base_layers < 1 || (axis != "token" && axis != "channel") ||
      (x != "unit" && x != "residual" && x != "fit")) {
    return std::nullopt;
  }
  return out;
}

// The layers of a payload. `widths(layer, bits)` are the channels' bits where
// scales are per channel.
std::vector<CrossLayer::Layer> LayLayersOut(
    const CrossLayerOptions& options, int num_layers, int num_channels,
    const std::function<std::vector<int>(int layer, int bits)>& widths,
    DeviceMatrices& matrices, size_t* payload_bytes) {
  std::vector<CrossLayer::Layer> layers;
  int64_t at = 0;
  for (int i = 0; i < num_layers; ++i) {
    CrossLayer::Layer layer;
    layer.predicted = i >= options.base_layers;
    const int bits = layer.predicted ? options.bits : options.base_bits;
    if (layer.predicted && options.kind != PredictionKind::kUnit) {
      layer.scales_at = at;
      at += kBlockTokens;
    }
    layer.matrix_at = at;
    layer.matrix = options.per_token ? matrices.AddPerToken(num_channels, bits,
                                                            options.rotated)
                                     : matrices.AddPerChannel(widths(i, bits));
    at += static_cast<int64_t>(matrices.bytes(layer.matrix));
    layers.push_back(layer);
  }
  *payload_bytes = static_cast<size_t>(at);
  return layers;
}

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceXquantCl(
    const DeviceCodecSources& sources) {
  const HyperParams& h = sources.model->hparams();
  SpecOptions spec(sources.codec->spec());
  const std::optional<CrossLayerOptions> options = TakeOptions(spec);
  if (!options.has_value()) return nullptr;
  auto tables =
      std::make_unique<CrossLayer::Tables>(*sources.ops, options->form);
  size_t payload_bytes = 0;
  std::vector<CrossLayer::Layer> layers = LayLayersOut(
      *options, h.num_layers, h.d_model,
      [&](int /*layer*/, int bits) {
        return std::vector<int>(static_cast<size_t>(h.d_model), bits);
      },
      tables->matrices, &payload_bytes);
  if (payload_bytes != sources.codec->payload_bytes()) return nullptr;
  XC_RETURN_IF_ERROR(tables->matrices.Upload(*sources.ops));
  XC_RETURN_IF_ERROR(UploadProjections(sources, nullptr, tables->projections));
  return std::make_unique<const CrossLayer>(
      std::move(layers), std::move(tables), options->kind, h.d_model, h.d_model,
      h.kv_dim(), UsesFusedRemat(sources));
}

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceXquantClGqa(
    const DeviceCodecSources& sources) {
  const HyperParams& h = sources.model->hparams();
  SpecOptions spec(sources.codec->spec());
  const bool spread = spec.Take("alloc") == "spectrum";
  const std::optional<CrossLayerOptions> options = TakeOptions(spec);
  if (!options.has_value()) return nullptr;
  const auto d = static_cast<size_t>(h.d_model);
  const size_t m = sources.profile->matrix(0, "kv_spectrum").size();
  for (int i = 0; i < h.num_layers; ++i) {
    if (sources.profile->matrix(i, "kv_spectrum").size() != m ||
        sources.profile->matrix(i, "kv_basis").size() != m * d) {
      return nullptr;
    }
  }
  auto tables =
      std::make_unique<CrossLayer::Tables>(*sources.ops, options->form);
  size_t payload_bytes = 0;
  std::vector<CrossLayer::Layer> layers = LayLayersOut(
      *options, h.num_layers, static_cast<int>(m),
      [&](int layer, int bits) {
        return spread ? SpreadBits(CrossLayerDeviations(sources.profile->matrix(
                                       layer, "kv_spectrum")),
                                   bits)
                      : std::vector<int>(m, bits);
      },
      tables->matrices, &payload_bytes);
  if (payload_bytes != sources.codec->payload_bytes()) return nullptr;
  DeviceOps& ops = *sources.ops;
  XC_RETURN_IF_ERROR(tables->matrices.Upload(ops));
  XC_RETURN_IF_ERROR(UploadProjections(sources, nullptr, tables->projections));

  const auto layer_elements = static_cast<int64_t>(d * m);
  XC_RETURN_IF_ERROR(tables->bases.Reserve(
      static_cast<size_t>(h.num_layers * layer_elements) * sizeof(uint16_t)));
  PinnedMemory staging(ops);
  XC_RETURN_IF_ERROR(staging.Reserve(UploadStagingBytes(static_cast<int>(m))));
  for (int i = 0; i < h.num_layers; ++i) {
    // The profile has U^T, a row for each column of U.
    const std::span<const float> basis = sources.profile->matrix(i, "kv_basis");
    UploadRows(
        ops, *sources.pool, staging, h.d_model, static_cast<int64_t>(m),
        HalfType::kF16,
        [&](int64_t row, float* out) {
          for (size_t c = 0; c < m; ++c) {
            out[c] = basis[c * d + static_cast<size_t>(row)];
          }
        },
        tables->bases.as<uint16_t>() + i * layer_elements);
  }
  return std::make_unique<const CrossLayer>(
      std::move(layers), std::move(tables), options->kind, h.d_model,
      static_cast<int>(m), h.kv_dim(), UsesFusedRemat(sources));
}

}  // namespace xcache::cuda
