// xquant on the device: unpack, dequantize and rotate back X to FP16, then one
// product with [W_k; W_v], FP16 with the norm's gain folded in, as the CPU has
// them. X̂ is rounded to FP16 once more than on the CPU: at most 2^-11 of each
// value, well below a step of 8 bits.
#include <utility>

#include "engine/base/status_macros.h"
#include "engine/cuda/device_codec.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/device_weights.h"
#include "engine/types.h"

namespace xcache::cuda {
namespace {

class Xquant final : public DeviceCodec {
 public:
  Xquant(const TokenMatrix& x, bool search,
         std::unique_ptr<DeviceMemory> weights,
         std::unique_ptr<DeviceMemory> units, int num_units, int kv_dim)
      : x_(x),
        search_(search),
        layer_bytes_(static_cast<int64_t>(TokenMatrixBytes(x))),
        weights_(std::move(weights)),
        units_(std::move(units)),
        num_units_(num_units),
        kv_dim_(kv_dim) {}

  int latent_width() const override { return x_.num_channels; }
  PreRows Remat(DeviceOps& ops, int layer, const RematBatch& batch,
                const RematScratch& scratch) const override {
    TokenMatrix x = x_;
    x.offset = layer * layer_bytes_;
    DecodeArgs decode;
    decode.payloads = batch.payloads;
    decode.out_f16 = scratch.latent;
    decode.out_stride = x.num_channels;
    decode.invalid = batch.invalid;
    decode.num_blocks = batch.num_blocks;
    ops.DecodeTokens(x, decode);
    GemmArgs gemm;
    gemm.a = scratch.latent;
    gemm.w = weights_->as<uint16_t>() +
             int64_t{layer} * 2 * kv_dim_ * x.num_channels;
    gemm.out = scratch.kv;
    gemm.out_stride = 2 * kv_dim_;
    gemm.num_rows = batch.num_blocks * kBlockTokens;
    gemm.n = 2 * kv_dim_;
    gemm.k = x.num_channels;
    gemm.type = HalfType::kF16;
    ops.Gemm(gemm);
    return {scratch.kv, scratch.kv + kv_dim_, 2 * kv_dim_};
  }

  size_t seal_floats() const override {
    return static_cast<size_t>(x_.num_channels) * kBlockTokens;
  }
  size_t seal_units() const override { return static_cast<size_t>(num_units_); }
  void Seal(DeviceOps& ops, int layer, const SealBatch& batch,
            const SealScratch& scratch) const override {
    TransposeArgs transpose;
    transpose.sources = batch.unit_x;
    transpose.layer_offset = int64_t{layer} * kBlockTokens * x_.num_channels;
    transpose.out = scratch.rows;
    transpose.invalid = batch.invalid;
    transpose.num_blocks = batch.num_blocks;
    transpose.num_channels = x_.num_channels;
    transpose.rotate = x_.rotated;
    ops.Transpose(transpose);
    QuantizeArgs quantize;
    quantize.sources = batch.unit_x;
    quantize.units = units_->as<TileUnit>();
    quantize.payload_offset = layer * layer_bytes_;
    quantize.x = scratch.rows;
    quantize.x_block = static_cast<int64_t>(seal_floats());
    quantize.x_stride = kBlockTokens;
    quantize.ranges = scratch.ranges;
    quantize.num_blocks = batch.num_blocks;
    quantize.num_units = num_units_;
    quantize.fp8 = x_.fp8;
    quantize.search = search_;
    ops.Quantize(quantize);
  }

 private:
  const TokenMatrix x_;
  const bool search_;
  const int64_t layer_bytes_;
  const std::unique_ptr<DeviceMemory> weights_;  // [layers, 2 kv_dim, d]
  const std::unique_ptr<DeviceMemory> units_;
  const int num_units_;
  const int kv_dim_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceXquant(
    const DeviceCodecSources& sources) {
  const Model& model = *sources.model;
  const HyperParams& h = model.hparams();
  SpecOptions options(sources.codec->spec());
  TokenMatrix x;
  x.num_channels = h.d_model;
  x.bits = options.TakeInt("bits").value_or(0);
  x.group = options.TakeInt("group").value_or(0);
  x.fp8 = options.Take("scales") == "fp8";
  x.rotated = options.Take("rotate") == "on";
  const bool per_token = options.Take("axis") == "token";
  const bool search = options.Take("clip") == "mse";
  if (!options.complete() || !per_token || x.group < 8 || x.group % 8 != 0 ||
      x.bits < 1 || x.bits > 8) {
    return nullptr;
  }
  const std::vector<Tile> tiles = TilesOf(x);
  if (!CanQuantize(tiles)) return nullptr;
  if (static_cast<size_t>(h.num_layers) * TokenMatrixBytes(x) !=
      sources.codec->payload_bytes()) {
    return nullptr;
  }

  auto weights = std::make_unique<DeviceMemory>(*sources.ops);
  const int64_t layer_elements = int64_t{2} * h.kv_dim() * h.d_model;
  XC_RETURN_IF_ERROR(weights->Reserve(
      static_cast<size_t>(h.num_layers * layer_elements) * sizeof(uint16_t)));
  PinnedMemory staging(*sources.ops);
  XC_RETURN_IF_ERROR(staging.Reserve(UploadStagingBytes(h.d_model)));
  std::vector<float> gain(static_cast<size_t>(h.d_model));
  for (int layer = 0; layer < h.num_layers; ++layer) {
    const LayerTensors& tensors = model.layer(layer);
    DequantizeRow(tensors.attn_norm, 0, gain.data());
    const auto fill = [&](int64_t row, float* out) {
      const bool value = row >= h.kv_dim();
      DequantizeRow(value ? tensors.wv : tensors.wk,
                    value ? row - h.kv_dim() : row, out);
      for (size_t i = 0; i < gain.size(); ++i) out[i] *= gain[i];
    };
    UploadRows(*sources.ops, *sources.pool, staging, 2 * h.kv_dim(), h.d_model,
               HalfType::kF16, fill,
               weights->as<uint16_t>() + layer * layer_elements);
  }
  const TileUnits units = MakeTileUnits(tiles, x.fp8);
  auto device_units = std::make_unique<DeviceMemory>(*sources.ops);
  XC_RETURN_IF_ERROR(
      UploadArray(*sources.ops, std::span(units.units), *device_units));
  return std::make_unique<const Xquant>(
      x, search, std::move(weights), std::move(device_units),
      static_cast<int>(units.units.size()), h.kv_dim());
}

}  // namespace xcache::cuda
