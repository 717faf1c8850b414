#include "tests/bench/gpu/remat_kernels.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/base/status_macros.h"
#include "engine/base/thread_pool.h"
#include "engine/common/codec_loader.h"
#include "engine/device/kernels/rows.h"
#include "engine/device/memory.h"
#include "engine/device/remat.h"
#include "engine/device/table_upload.h"
#include "engine/kernels/isa.h"
#include "tests/bench/xcache_bench.h"

namespace xcache::bench {
namespace {

using cuda::DeviceMemory;
using cuda::kRematBlocks;
using cuda::RematKernel;
using cuda::StreamId;

// What a batch needs on the device.
struct Batch {
  explicit Batch(cuda::DeviceOps& ops)
      : payloads(ops),
        tiles(ops),
        angles(ops),
        latent(ops),
        kv(ops),
        sums(ops),
        tables(ops) {}
  DeviceMemory payloads, tiles, angles, latent, kv, sums;
  cuda::TableUpload tables;
  cuda::RematBatch args;
};

absl::Status MakeBatch(cuda::DeviceOps& ops, const HyperParams& h,
                       std::span<const uint8_t> payload, Batch& batch) {
  constexpr auto kBlocks = static_cast<size_t>(kRematBlocks);
  const cuda::KvLayout layout = {h.num_layers, h.n_kv_heads, h.head_dim};
  const auto layer = static_cast<size_t>(cuda::LayerElements(layout));
  const size_t page = (payload.size() + 255) / 256 * 256;
  XC_RETURN_IF_ERROR(batch.payloads.Reserve(kBlocks * page));
  XC_RETURN_IF_ERROR(batch.tiles.Reserve(kBlocks * layer * sizeof(uint16_t)));
  XC_RETURN_IF_ERROR(batch.kv.Reserve(kBlocks * kBlockTokens * 2 *
                                      static_cast<size_t>(h.kv_dim()) *
                                      sizeof(float)));
  std::vector<const uint8_t*> payloads;
  std::vector<cuda::BlockTarget> targets;
  for (size_t b = 0; b < kBlocks; ++b) {
    uint8_t* to = batch.payloads.as<uint8_t>() + b * page;
    ops.CopyToDevice(StreamId::kCompute, to, payload.data(), payload.size());
    payloads.push_back(to);
    cuda::BlockTarget target;
    target.tiles = batch.tiles.as<uint16_t>() + b * layer;
    target.first_position = static_cast<int32_t>(b) * kBlockTokens;
    targets.push_back(target);
  }
  std::vector<float> angles(kBlocks * kBlockTokens *
                            static_cast<size_t>(h.head_dim / 2));
  for (size_t i = 0; i < angles.size(); ++i) {
    angles[i] = std::cos(static_cast<float>(i));
  }
  XC_RETURN_IF_ERROR(batch.angles.Reserve(angles.size() * sizeof(float)));
  ops.CopyToDevice(StreamId::kCompute, batch.angles.as<void>(), angles.data(),
                   angles.size() * sizeof(float));
  ops.Synchronize(StreamId::kCompute);
  const size_t payloads_at = batch.tables.Add(payloads);
  const size_t targets_at = batch.tables.Add(targets);
  const size_t invalid_at = batch.tables.Add(std::vector<int32_t>(kBlocks));
  XC_RETURN_IF_ERROR(batch.tables.Upload());
  batch.args.num_blocks = kRematBlocks;
  batch.args.payloads = batch.tables.At<const uint8_t*>(payloads_at);
  batch.args.targets = batch.tables.At<cuda::BlockTarget>(targets_at);
  batch.args.invalid = batch.tables.At<int32_t>(invalid_at);
  cuda::StoreKvArgs& store = batch.args.store;
  store.blocks = batch.args.targets;
  store.cos = batch.angles.as<float>();
  store.sin = store.cos;
  store.layout = layout;
  store.rope_dim = h.head_dim;
  store.n_heads = h.n_heads;
  return absl::OkStatus();
}

}  // namespace

const char* RematKernelName(RematKernel kernel) {
  return kernel == RematKernel::kFused ? "fused" : "two-step";
}

absl::StatusOr<std::vector<nlohmann::ordered_json>> MeasureRematKernels(
    std::shared_ptr<const Model> model, cuda::DeviceOps& ops,
    const std::string& spec, std::span<const uint8_t> payload,
    const RematKernelsOptions& options) {
  CodecLoader loader(model, options.profile_dir, *ChooseIsa(""));
  XC_ASSIGN_OR_RETURN(const LoadedCodec loaded, loader.Load(spec, {}));
  ThreadPool pool(options.threads);
  const HyperParams& h = model->hparams();
  Batch batch(ops);
  XC_RETURN_IF_ERROR(MakeBatch(ops, h, payload, batch));
  std::vector<nlohmann::ordered_json> rows;
  for (RematKernel kernel : {RematKernel::kFused, RematKernel::kTwoStep}) {
    nlohmann::ordered_json row = {{"what", "remat kernel"},
                                  {"codec", loaded.spec},
                                  {"remat_kernel", RematKernelName(kernel)},
                                  {"tokens", kRematBlocks * kBlockTokens}};
    cuda::DeviceCodecSources sources;
    sources.codec = loaded.codec.get();
    sources.profile = loaded.profile.get();
    sources.model = model.get();
    sources.ops = &ops;
    sources.pool = &pool;
    sources.remat_kernel = kernel;
    if (kernel == RematKernel::kFused && !cuda::UsesFusedRemat(sources)) {
      row["skipped"] = "the device or the head's width has no fused kernel";
      rows.push_back(row);
      continue;
    }
    XC_ASSIGN_OR_RETURN(const auto codec, cuda::MakeDeviceCodec(sources));
    if (codec == nullptr) return rows;
    XC_RETURN_IF_ERROR(batch.latent.Reserve(std::max<size_t>(
        1, size_t{kRematBlocks} * kBlockTokens * sizeof(uint16_t) *
               static_cast<size_t>(codec->latent_width()))));
    const size_t sums_bytes = cuda::DeviceRemat::SumsBytes(*codec);
    if (sums_bytes > 0) XC_RETURN_IF_ERROR(batch.sums.Reserve(sums_bytes));
    std::vector<double> ms;
    for (int i = 0; i < options.repeat + 1; ++i) {
      const Timer timer;
      for (int layer = 0; layer < h.num_layers; ++layer) {
        const cuda::PreRows pre =
            codec->Remat(ops, layer, batch.args,
                         {batch.latent.as<uint16_t>(), batch.kv.as<float>(),
                          batch.sums.as<float>()});
        if (pre.k == nullptr) continue;
        cuda::StoreKvArgs store = batch.args.store;
        store.k = pre.k;
        store.v = pre.v;
        store.kv_stride = pre.stride;
        store.num_rows = kRematBlocks * kBlockTokens;
        ops.StoreKv(store);
      }
      ops.Synchronize(StreamId::kCompute);
      if (i > 0) ms.push_back(timer.ms());
    }
    if (ops.error() != nullptr) return absl::InternalError(ops.error());
    std::nth_element(ms.begin(), ms.begin() + ms.size() / 2, ms.end());
    const double median = ms[ms.size() / 2];
    row["ms"] = median;
    row["tokens_per_s"] = kRematBlocks * kBlockTokens / median * 1e3;
    rows.push_back(row);
  }
  return rows;
}

}  // namespace xcache::bench
