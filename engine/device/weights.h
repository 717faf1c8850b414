// A model's weights in device memory. The memory policy: matrices, the token
// embedding too, are dequantized once, at load, to BF16, two bytes a parameter;
// or those of quantized types stay in the file's blocks, a little more than the
// file's bytes, and only F32, F16 and BF16 tensors become BF16. Vectors are
// FP32.
#ifndef XCACHE_ENGINE_DEVICE_WEIGHTS_H_
#define XCACHE_ENGINE_DEVICE_WEIGHTS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"
#include "engine/device/memory.h"
#include "engine/device/ops.h"
#include "engine/model/model.h"
#include "engine/types.h"

namespace xcache::cuda {

enum class WeightPolicy {
  // As BF16 where that takes at most half of the memory that is free then, else
  // quantized: the other half is for K/V.
  kAuto,
  kBf16,
  kQuantized,
};
// "auto", "bf16" or "quantized".
std::optional<WeightPolicy> ParseWeightPolicy(std::string_view name);

// Rows of a matrix that are held alike: as BF16, or in blocks of one type.
struct DeviceMatrixPart {
  int first_row = 0;
  int num_rows = 0;
  const uint16_t* bf16 = nullptr;  // [num_rows, cols]; null: `quantized`
  QuantizedMatrix quantized;
};
// A matrix [.., cols]: its parts are one below the other.
struct DeviceMatrix {
  std::vector<DeviceMatrixPart> parts;
  int cols = 0;
};

struct DeviceLayer {
  const float* attn_norm = nullptr;  // [d]
  const float* ffn_norm = nullptr;   // [d]
  const float* bq = nullptr;         // null where the model has none
  const float* bk = nullptr;
  const float* bv = nullptr;
  DeviceMatrix w_qkv;      // [q_dim + 2 kv_dim, d]: W_q, W_k, W_v
  DeviceMatrix w_o;        // [d, q_dim]
  DeviceMatrix w_gate_up;  // [2 d_ff, d]: gate, then up
  DeviceMatrix w_down;     // [d, d_ff]
};

class DeviceWeights {
 public:
  // Uploads the weights and says in the log how they are held.
  // RESOURCE_EXHAUSTED says how much they need.
  static absl::StatusOr<std::unique_ptr<DeviceWeights>> Create(
      const Model& model, DeviceOps& ops, WeightPolicy policy, ThreadPool& pool,
      const ProgressFn& progress);

  const DeviceLayer& layer(int i) const {
    return layers_[static_cast<size_t>(i)];
  }
  const DeviceMatrix& embedding() const { return embedding_; }  // [vocab, d]
  const DeviceMatrix& output() const { return output_; }        // [vocab, d]
  const float* output_norm() const { return output_norm_; }
  size_t bytes() const { return memory_.bytes(); }
  // All that rows are multiplied with.
  std::vector<const DeviceMatrix*> matrices() const;
  // Whether a matrix is held in blocks.
  bool quantized() const { return quantized_; }

 private:
  explicit DeviceWeights(DeviceOps& ops) : memory_(ops) {}

  DeviceMemory memory_;
  std::vector<DeviceLayer> layers_;
  DeviceMatrix embedding_;
  DeviceMatrix output_;
  const float* output_norm_ = nullptr;
  bool quantized_ = false;
};

// A tensor of a type that can stay in blocks: which; kBf16 for others.
WeightType WeightTypeOf(GgufType type);
// Rows of such a tensor, uploaded as QuantizedMatrix has them. `staging` has
// room for one at least.
void UploadBlocks(DeviceOps& ops, ThreadPool& pool, PinnedMemory& staging,
                  const TensorView& tensor, uint8_t* to);

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

#endif  // XCACHE_ENGINE_DEVICE_WEIGHTS_H_
