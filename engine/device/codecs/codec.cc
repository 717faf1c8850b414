#include "engine/device/codecs/codec.h"

#include <array>
#include <string_view>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/device/kernels/quantize.h"
#include "engine/device/weights.h"
#include "engine/types.h"

namespace xcache::cuda {
namespace {

struct Entry {
  std::string_view name;
  absl::StatusOr<std::unique_ptr<const DeviceCodec>> (*make)(
      const DeviceCodecSources& sources);
};

constexpr std::array kDeviceCodecs = {
    Entry{"kivi", &MakeDeviceKivi},
    Entry{"kv-fp16", &MakeDeviceKvFp16},
    Entry{"xquant", &MakeDeviceXquant},
    Entry{"xquant-cl", &MakeDeviceCrossLayer},
    Entry{"xquant-cl-gqa", &MakeDeviceCrossLayer},
    Entry{"xquant-gqa", &MakeDeviceXquantGqa},
};

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceCodec(
    const DeviceCodecSources& sources) {
  const int group = sources.codec->plan().quant().group;
  if (group % 8 != 0 || group > kMaxTileRows) return nullptr;
  for (const Entry& entry : kDeviceCodecs) {
    if (entry.name == sources.codec->spec().name) return entry.make(sources);
  }
  return nullptr;
}

absl::Status UploadProjections(const DeviceCodecSources& sources,
                               const std::function<void(float* row)>& turn,
                               DeviceMemory& to) {
  const Model& model = *sources.model;
  const HyperParams& h = model.hparams();
  const int64_t layer_elements = int64_t{2} * h.kv_dim() * h.d_model;
  XC_RETURN_IF_ERROR(to.Reserve(
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
      if (turn) turn(out);
    };
    UploadRows(*sources.ops, *sources.pool, staging, 2 * h.kv_dim(), h.d_model,
               HalfType::kF16, fill,
               to.as<uint16_t>() + layer * layer_elements);
  }
  return absl::OkStatus();
}

bool UsesFusedRemat(const DeviceCodecSources& sources) {
  return sources.remat_kernel == RematKernel::kFused &&
         sources.ops->info().has_fused_remat &&
         sources.model->hparams().head_dim <= kFusedHeadDim;
}

PreRows ProjectToKv(DeviceOps& ops, const RematBatch& batch,
                    const RematScratch& scratch, const uint16_t* w, int n,
                    int k, int kv_dim) {
  GemmArgs gemm;
  gemm.a = scratch.latent;
  gemm.w = w;
  gemm.out = scratch.kv;
  gemm.out_stride = 2 * kv_dim;
  gemm.num_rows = batch.num_blocks * kBlockTokens;
  gemm.n = n;
  gemm.k = k;
  gemm.type = HalfType::kF16;
  ops.Gemm(gemm);
  return {scratch.kv, scratch.kv + kv_dim, 2 * kv_dim};
}

}  // namespace xcache::cuda
