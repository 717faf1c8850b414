// xquant-gqa on the device: K's latent to FP16 and one product with the basis
// B^T as FP16, in one kernel or in two steps; V is rotated back with additions
// alone, to the CPU's very bits.
// K differs from the CPU's by the rounding of latent and basis to 11 bits.
#include <algorithm>
#include <utility>

#include "engine/base/status_macros.h"
#include "engine/cuda/device_codec.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/device_weights.h"
#include "engine/types.h"
#include "engine/xcache/bit_allocation.h"
#include "engine/xcache/tile_coder.h"

namespace xcache::cuda {
namespace {

class XquantGqa final : public DeviceCodec {
 public:
  struct Layer {
    ChannelMatrix k;
    TokenMatrix v;
    size_t first_k_unit = 0;  // in units
    int num_k_units = 0;
  };
  // Tables on the device.
  struct Tables {
    explicit Tables(DeviceOps& ops)
        : entries(ops), units(ops), from_latent(ops), to_latent(ops) {}
    DeviceMemory entries;      // of all layers' K
    DeviceMemory units;        // V's, the same for every layer; then K's
    DeviceMemory from_latent;  // [layers, kv_dim, kv_dim] FP16
    DeviceMemory to_latent;    // [layers, kv_dim, kv_dim] FP32
  };
  XquantGqa(std::vector<Layer> layers, std::unique_ptr<Tables> tables,
            int num_v_units, bool search, int kv_dim, bool fused)
      : layers_(std::move(layers)),
        tables_(std::move(tables)),
        num_v_units_(num_v_units),
        search_(search),
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
      fused.latent = l.k;
      fused.w = w;
      fused.v = l.v;
      fused.store = batch.store;
      ops.FusedRemat(fused);
      return {};
    }
    DecodeArgs decode;
    decode.payloads = batch.payloads;
    decode.invalid = batch.invalid;
    decode.num_blocks = batch.num_blocks;
    decode.out_f16 = scratch.latent;
    decode.out_stride = kv_dim_;
    ops.DecodeChannels(l.k, decode);
    GemmArgs gemm;
    gemm.a = scratch.latent;
    gemm.w = w;
    gemm.out = scratch.kv;
    gemm.out_stride = 2 * kv_dim_;
    gemm.num_rows = batch.num_blocks * kBlockTokens;
    gemm.n = kv_dim_;
    gemm.k = kv_dim_;
    gemm.type = HalfType::kF16;
    ops.Gemm(gemm);
    decode.out_f16 = nullptr;
    decode.out = scratch.kv + kv_dim_;
    decode.out_stride = 2 * kv_dim_;
    ops.DecodeTokens(l.v, decode);
    return {scratch.kv, scratch.kv + kv_dim_, 2 * kv_dim_};
  }

  size_t seal_floats() const override {
    return static_cast<size_t>(kv_dim_) * kBlockTokens;
  }
  size_t seal_units() const override {
    int most = num_v_units_;
    for (const Layer& layer : layers_) most = std::max(most, layer.num_k_units);
    return static_cast<size_t>(most);
  }
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
    QuantizeArgs quantize;
    quantize.sources = batch.k_pre;
    quantize.units = tables_->units.as<TileUnit>() + l.first_k_unit;
    quantize.payload_offset = l.k.offset;
    quantize.x = scratch.rows;
    quantize.x_block = static_cast<int64_t>(seal_floats());
    quantize.x_stride = kv_dim_;
    quantize.ranges = scratch.ranges;
    quantize.num_blocks = batch.num_blocks;
    quantize.num_units = l.num_k_units;
    quantize.rows_are_tokens = true;
    quantize.fp8 = l.k.fp8;
    quantize.search = search_;
    ops.Quantize(quantize);

    TransposeArgs transpose;
    transpose.sources = batch.v_pre;
    transpose.layer_offset = product.layer_offset;
    transpose.out = scratch.rows;
    transpose.invalid = batch.invalid;
    transpose.num_blocks = batch.num_blocks;
    transpose.num_channels = kv_dim_;
    transpose.rotate = l.v.rotated;
    ops.Transpose(transpose);
    quantize.sources = batch.v_pre;
    quantize.units = tables_->units.as<TileUnit>();
    quantize.payload_offset = l.v.offset;
    quantize.x_stride = kBlockTokens;
    quantize.num_units = num_v_units_;
    quantize.rows_are_tokens = false;
    ops.Quantize(quantize);
  }

 private:
  const std::vector<Layer> layers_;
  const std::unique_ptr<Tables> tables_;
  const int num_v_units_;
  const bool search_;
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
  TokenMatrix v;
  v.num_channels = kv_dim;
  v.bits = options.TakeInt("bits").value_or(0);
  v.group = options.TakeInt("group").value_or(0);
  v.fp8 = options.Take("scales") == "fp8";
  v.rotated = options.Take("rotate") == "on";
  const bool spread = options.Take("alloc") == "spectrum";
  const bool search = options.Take("clip") == "mse";
  if (!options.complete() || v.group < 8 || v.group % 8 != 0 || v.bits < 1 ||
      v.bits > 8) {
    return nullptr;
  }

  // Where each channel's codes are, from the layout that the CPU's codec has.
  const int group = std::min(v.group, kBlockTokens);
  const size_t row_groups = static_cast<size_t>(kBlockTokens / group);
  std::vector<ChannelEntry> entries;
  std::vector<XquantGqa::Layer> layers;
  const TileUnits v_units = MakeTileUnits(TilesOf(v), v.fp8);
  std::vector<TileUnit> units = v_units.units;
  if (!CanQuantize(TilesOf(v))) return nullptr;
  size_t offset = 0;
  for (int i = 0; i < h.num_layers; ++i) {
    const std::span<const float> spectrum =
        sources.profile->matrix(i, "k_spectrum");
    const std::vector<int> widths =
        spread ? SpreadBits(spectrum, v.bits) : std::vector<int>(k, v.bits);
    if (widths.size() != k) return nullptr;
    XquantGqa::Layer layer;
    layer.k.offset = static_cast<int64_t>(offset);
    layer.k.num_channels = kv_dim;
    layer.k.group = group;
    layer.k.fp8 = v.fp8;
    const size_t first_entry = entries.size();
    entries.resize(first_entry + row_groups * k);
    const TileUnits k_units =
        MakeTileUnits(PerChannelTiles(widths, kBlockTokens, v.group), v.fp8);
    for (const TileUnit& unit : k_units.units) {
      ChannelEntry* row = entries.data() + first_entry +
                          static_cast<size_t>(unit.first_row / group) * k;
      for (int c = 0; c < unit.num_cols; ++c) {
        row[unit.first_col + c] = {unit.tile_offset, unit.tile_cols,
                                   unit.col + c, unit.bits};
      }
    }
    layer.first_k_unit = units.size();
    layer.num_k_units = static_cast<int>(k_units.units.size());
    units.insert(units.end(), k_units.units.begin(), k_units.units.end());
    offset += k_units.bytes;
    layer.v = v;
    layer.v.offset = static_cast<int64_t>(offset);
    offset += v_units.bytes;
    layers.push_back(layer);
  }
  if (offset != sources.codec->payload_bytes()) return nullptr;

  DeviceOps& ops = *sources.ops;
  auto tables = std::make_unique<XquantGqa::Tables>(ops);
  const auto entry_span = std::span<const ChannelEntry>(entries);
  XC_RETURN_IF_ERROR(UploadArray(ops, entry_span, tables->entries));
  XC_RETURN_IF_ERROR(
      UploadArray(ops, std::span<const TileUnit>(units), tables->units));
  const size_t matrices = static_cast<size_t>(h.num_layers) * k * k;
  XC_RETURN_IF_ERROR(tables->from_latent.Reserve(matrices * sizeof(uint16_t)));
  XC_RETURN_IF_ERROR(tables->to_latent.Reserve(matrices * sizeof(float)));
  PinnedMemory staging(ops);
  XC_RETURN_IF_ERROR(staging.Reserve(UploadStagingBytes(kv_dim)));
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].k.entries =
        tables->entries.as<ChannelEntry>() + i * row_groups * k;
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
  return std::make_unique<const XquantGqa>(
      std::move(layers), std::move(tables),
      static_cast<int>(v_units.units.size()), search, kv_dim,
      UsesFusedRemat(sources));
}

}  // namespace xcache::cuda
