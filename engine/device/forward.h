// The forward pass on a device: rows of many sequences together, layer by
// layer, all enqueued on the compute stream, with one upload of tables before
// and one download of logits after. Rows are computed independently of each
// other: fixed tiles in products, fixed chunks in attention.
//
// Reads and writes tiles and live rows that it is given; sequences, sealing and
// errors are its caller's. Mirrors engine/cpu/forward.h.
#ifndef XCACHE_ENGINE_DEVICE_FORWARD_H_
#define XCACHE_ENGINE_DEVICE_FORWARD_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/common/kv_shape.h"
#include "engine/device/memory.h"
#include "engine/device/ops.h"
#include "engine/device/remat.h"
#include "engine/device/table_upload.h"
#include "engine/device/weight_product.h"
#include "engine/device/weights.h"
#include "engine/engine.h"
#include "engine/model/model.h"

namespace xcache::cuda {

// Tokens of one sequence, all in its live block.
struct DeviceForwardItem {
  std::span<const TokenId> tokens;
  // The blocks before the live one, in order: DeviceKvBlocks.
  std::span<const KvBlockRef> sealed;
  // Decodes those that are kept as payloads; null where none is.
  const DeviceCodec* codec = nullptr;
  uint16_t* live_tiles = nullptr;
  // Live rows of layer 0; null where none are kept.
  float* unit_x = nullptr;
  float* rms = nullptr;
  float* k_pre = nullptr;
  float* v_pre = nullptr;
  int live_tokens = 0;  // rows that the live block has already
  LogitsMode logits_mode = LogitsMode::kNone;
  std::span<const float> logits;  // out; valid until the next Run
  std::span<const float> hidden;  // the same

  int64_t first_position() const {
    return static_cast<int64_t>(sealed.size()) * kBlockTokens + live_tokens;
  }
};

class DeviceForward {
 public:
  // All arguments but `shape` must outlive it. At most `sums_bytes` of `pool`
  // are used in a step for sums of cross-layer codecs.
  DeviceForward(const Model& model, const DeviceWeights& weights,
                WeightProduct& product, DeviceOps& ops, DeviceRemat& remat,
                std::shared_ptr<DevicePool> pool, size_t sums_bytes,
                const KvShape& shape);

  // Waits until the work is done. RESOURCE_EXHAUSTED: no room for buffers;
  // nothing has been enqueued then. DATA_LOSS: a payload that blocks are kept
  // as holds a scale that is none.
  // REQUIRES: every item has tokens, with valid ids, that fit its live block.
  absl::Status Run(std::span<DeviceForwardItem> items);

 private:
  // Blocks of a step that are kept as payloads, of items with one codec.
  struct PayloadGroup {
    const DeviceCodec* codec = nullptr;
    size_t payloads = 0, targets = 0, invalid = 0;  // in tables_
    int num_blocks = 0;
    // Of a codec with sums: where they are kept from layer to layer, a piece
    // for each kRematBlocks blocks. There was no room for those of later
    // blocks: each layer makes them from the first layer on.
    std::vector<PoolPiece> sums;
  };

  absl::Status Reserve(int64_t rows);
  absl::Status Plan(std::span<const DeviceForwardItem> items, int64_t kept);
  void TakeSums();
  void RematPayloads(int layer);
  void Layer(int layer);
  // Of the rows that Plan has listed: `kept` of logits, then `num_hidden_`.
  void Outputs(int64_t kept);
  absl::Status CheckPayloads();

  void Norm(const float* gain, int layer, const int32_t* row_index, int rows);

  const HyperParams& hparams_;
  const DeviceWeights& weights_;
  WeightProduct& product_;
  DeviceOps& ops_;
  DeviceRemat& remat_;
  const std::shared_ptr<DevicePool> pool_;
  const size_t sums_bytes_;
  const KvShape shape_;
  const int q_dim_;
  const int qkv_dim_;
  const int64_t logits_stride_;

  int rows_ = 0;         // of the step at hand
  DeviceMemory x_;       // [rows, d] FP32, residual stream
  DeviceMemory norm_;    // [rows, d] BF16
  DeviceMemory qkv_;     // [rows, qkv_dim] FP32
  DeviceMemory q_;       // [rows, q_dim] FP32
  DeviceMemory attn_;    // [rows, q_dim] BF16
  DeviceMemory ff_;      // [rows, 2 d_ff] FP32
  DeviceMemory act_;     // [rows, d_ff] BF16
  DeviceMemory logits_;  // [kept, logits_stride] FP32
  DeviceMemory partials_;
  DeviceMemory step_tiles_;  // one layer of the blocks kept as payloads
  PinnedMemory host_logits_;
  std::vector<float> packed_logits_;  // where the stride is not the vocabulary
  PinnedMemory host_hidden_;          // [num_hidden, d] BF16
  std::vector<float> hidden_;         // the same, as FP32

  TableUpload tables_;
  size_t rows_at_ = 0, tasks_at_ = 0, blocks_at_ = 0, kept_at_ = 0;
  int num_tasks_ = 0;
  int64_t num_hidden_ = 0;  // rows of the step at hand
  std::vector<PayloadGroup> payload_groups_;
  PinnedMemory host_invalid_;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_FORWARD_H_
