#include "engine/device/remat.h"

#include <algorithm>

#include "engine/base/status_macros.h"
#include "engine/device/kv.h"
#include "engine/types.h"

namespace xcache::cuda {

DeviceRemat::DeviceRemat(const Model& model, const DeviceWeights& weights,
                         DeviceOps& ops, const KvShape& shape)
    : hparams_(model.hparams()),
      weights_(weights),
      ops_(ops),
      shape_(shape),
      rope_(model),
      cos_(ops),
      sin_(ops),
      latent_(ops),
      kv_(ops),
      sums_(ops) {}

absl::Status DeviceRemat::ExtendRope(int64_t num_positions) {
  if (num_positions <= positions_) return absl::OkStatus();
  // Doubled, so that a long conversation uploads them a few times only.
  positions_ = std::max({num_positions, 2 * positions_, int64_t{512}});
  rope_.Extend(positions_);
  const size_t bytes = static_cast<size_t>(positions_) *
                       static_cast<size_t>(rope_.rope_dim() / 2) *
                       sizeof(float);
  if (bytes == 0) return absl::OkStatus();
  XC_RETURN_IF_ERROR(cos_.Reserve(bytes));
  XC_RETURN_IF_ERROR(sin_.Reserve(bytes));
  ops_.CopyToDevice(StreamId::kCompute, cos_.as<void>(), rope_.cos(0), bytes);
  ops_.CopyToDevice(StreamId::kCompute, sin_.as<void>(), rope_.sin(0), bytes);
  ops_.Synchronize(StreamId::kCompute);
  return absl::OkStatus();
}

absl::Status DeviceRemat::Reserve(const DeviceCodec* codec) {
  const size_t rows =
      size_t{kBlockTokens} * (codec != nullptr ? kRematBlocks : 1);
  const size_t width = 2 * static_cast<size_t>(shape_.kv_dim());
  XC_RETURN_IF_ERROR(kv_.Reserve(rows * width * sizeof(float)));
  if (codec == nullptr) return absl::OkStatus();
  XC_RETURN_IF_ERROR(sums_.Reserve(SumsBytes(*codec)));
  return latent_.Reserve(std::max<size_t>(
      1, rows * static_cast<size_t>(codec->latent_width()) * sizeof(uint16_t)));
}

StoreKvArgs DeviceRemat::StoreArgs(int layer) const {
  const DeviceLayer& w = weights_.layer(layer);
  StoreKvArgs args;
  args.bq = w.bq;
  args.bk = w.bk;
  args.bv = w.bv;
  args.cos = cos_.as<float>();
  args.sin = sin_.as<float>();
  args.rope_order = rope_.order();
  args.layout = LayoutOf(shape_);
  args.rope_dim = rope_.rope_dim();
  args.n_heads = hparams_.n_heads;
  args.layer = layer;
  return args;
}

size_t DeviceRemat::SumsBytes(const DeviceCodec& codec) {
  return size_t{kRematBlocks} * kBlockTokens *
         static_cast<size_t>(codec.sums_width()) * sizeof(float);
}

RematScratch DeviceRemat::Scratch(float* sums) const {
  return {latent_.as<uint16_t>(), kv_.as<float>(),
          sums != nullptr ? sums : sums_.as<float>()};
}

void DeviceRemat::LayerFromFirst(const DeviceCodec& codec, int layer,
                                 const RematBatch& batch) {
  for (int before = 0; before < layer; ++before) {
    codec.Advance(ops_, before, batch, Scratch(nullptr));
  }
  Layer(codec, layer, batch);
}

void DeviceRemat::Layer(const DeviceCodec& codec, int layer,
                        const RematBatch& batch, float* sums) {
  RematBatch with_store = batch;
  with_store.store = StoreArgs(layer);
  with_store.store.blocks = batch.targets;
  const PreRows rows = codec.Remat(ops_, layer, with_store, Scratch(sums));
  if (rows.k == nullptr) return;
  StoreKvArgs args = with_store.store;
  args.k = rows.k;
  args.v = rows.v;
  args.kv_stride = rows.stride;
  args.num_rows = batch.num_blocks * kBlockTokens;
  ops_.StoreKv(args);
}

void DeviceRemat::HostLayer(int layer, bool final_stage, const uint8_t* rows,
                            const uint8_t* const* host_rows_table,
                            const BlockTarget* target) {
  const int64_t side = int64_t{kBlockTokens} * shape_.kv_dim();
  const auto elements = static_cast<size_t>(2 * side);
  ops_.CopyToDevice(
      StreamId::kCompute, kv_.as<void>(), rows,
      elements * (final_stage ? sizeof(uint16_t) : sizeof(float)));
  if (final_stage) {
    StoreFinalArgs args;
    args.payloads = host_rows_table;
    args.blocks = target;
    args.layout = LayoutOf(shape_);
    args.layer = layer;
    args.num_blocks = 1;
    ops_.StoreFinal(args);
    return;
  }
  StoreKvArgs args = StoreArgs(layer);
  args.blocks = target;
  args.k = kv_.as<float>();
  args.v = kv_.as<float>() + side;
  args.kv_stride = shape_.kv_dim();
  args.num_rows = kBlockTokens;
  ops_.StoreKv(args);
}

}  // namespace xcache::cuda
