#include "engine/device/codecs/codec.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "engine/base/status_macros.h"
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
    Entry{"xquant-cl", &MakeDeviceXquantCl},
    Entry{"xquant-cl-gqa", &MakeDeviceXquantClGqa},
    Entry{"xquant-gqa", &MakeDeviceXquantGqa},
};

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceCodec(
    const DeviceCodecSources& sources) {
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

SpecOptions::SpecOptions(const CodecSpec& spec) {
  for (const auto& [key, value] : spec.options) left_[key] = value;
}

std::string SpecOptions::Take(const std::string& key) {
  const auto it = left_.find(key);
  if (it == left_.end()) {
    missing_ = true;
    return "";
  }
  std::string value = it->second;
  left_.erase(it);
  return value;
}

std::optional<int> SpecOptions::TakeInt(const std::string& key) {
  const std::string text = Take(key);
  if (text.empty() || text.size() > 4 ||
      !std::all_of(text.begin(), text.end(),
                   [](char c) { return c >= '0' && c <= '9'; })) {
    missing_ = true;
    return std::nullopt;
  }
  return std::atoi(text.c_str());
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
