// A model's weights in device memory. The memory policy: every matrix, the
// token embedding too, is dequantized once, at load, to BF16: two bytes a
// parameter, whatever the file has. Vectors are FP32.
#ifndef XCACHE_ENGINE_CUDA_DEVICE_WEIGHTS_H_
#define XCACHE_ENGINE_CUDA_DEVICE_WEIGHTS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/device_ops.h"
#include "engine/model/model.h"
#include "engine/types.h"

namespace xcache::cuda {

struct DeviceLayer {
  const float* attn_norm = nullptr;  // [d]
  const float* ffn_norm = nullptr;   // [d]
  const float* bq = nullptr;         // null where the model has none
  const float* bk = nullptr;
  const float* bv = nullptr;
  const uint16_t* w_qkv = nullptr;      // [q_dim + 2 kv_dim, d]: W_q, W_k, W_v
  const uint16_t* w_o = nullptr;        // [d, q_dim]
  const uint16_t* w_gate_up = nullptr;  // [2 d_ff, d]: gate, then up
  const uint16_t* w_down = nullptr;     // [d, d_ff]
};

class DeviceWeights {
 public:
  // Uploads the weights. RESOURCE_EXHAUSTED says how much they need.
  static absl::StatusOr<std::unique_ptr<DeviceWeights>> Create(
      const Model& model, DeviceOps& ops, ThreadPool& pool,
      const ProgressFn& progress);

  const DeviceLayer& layer(int i) const {
    return layers_[static_cast<size_t>(i)];
  }
  const uint16_t* embedding() const { return embedding_; }  // [vocab, d]
  const uint16_t* output() const { return output_; }        // [vocab, d]
  const float* output_norm() const { return output_norm_; }
  size_t bytes() const { return memory_.bytes(); }

 private:
  explicit DeviceWeights(DeviceOps& ops) : memory_(ops) {}

  DeviceMemory memory_;
  std::vector<DeviceLayer> layers_;
  const uint16_t* embedding_ = nullptr;
  const uint16_t* output_ = nullptr;
  const float* output_norm_ = nullptr;
};

// A matrix that is made on the host and uploaded as 16-bit floats, a run of
// rows at a time; `fill` yields a row as FP32 and is called from several
// threads.
void UploadRows(DeviceOps& ops, ThreadPool& pool, PinnedMemory& staging,
                int64_t rows, int64_t cols, HalfType type,
                const std::function<void(int64_t row, float* out)>& fill,
                uint16_t* to);
// Bytes that `staging` needs for rows of `cols` elements.
size_t UploadStagingBytes(int64_t cols);

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_CUDA_DEVICE_WEIGHTS_H_
