// From codes, or from the CPU codec's rows, to K/V tiles on the device, a layer
// at a time: the codec's kernels, then biases, RoPE and FP16 by the very kernel
// that a step's rows go through. Owns the scratch and RoPE's tables.
#ifndef XCACHE_ENGINE_DEVICE_REMAT_H_
#define XCACHE_ENGINE_DEVICE_REMAT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/common/kv_shape.h"
#include "engine/common/rope_table.h"
#include "engine/device/codecs/codec.h"
#include "engine/device/memory.h"
#include "engine/device/ops.h"
#include "engine/device/weights.h"
#include "engine/model/model.h"

namespace xcache::cuda {

// Blocks that go through the scratch together: enough rows for a large product,
// and a scratch that is small beside the weights.
inline constexpr int kRematBlocks = 32;

class DeviceRemat {
 public:
  // All arguments but `shape` must outlive it.
  DeviceRemat(const Model& model, const DeviceWeights& weights, DeviceOps& ops,
              const KvShape& shape);

  // Makes RoPE's angles available for positions below `num_positions`. No work
  // may be under way.
  absl::Status ExtendRope(int64_t num_positions);
  // Room for batches of this codec; null: of rows from the CPU's codec.
  absl::Status Reserve(const DeviceCodec* codec);

  // Enqueues one layer of a batch of at most kRematBlocks blocks. Where the
  // codec has sums, its layers come in order; `sums` is where the batch's are
  // kept, SumsBytes() of device memory, or null: the scratch.
  void Layer(const DeviceCodec& codec, int layer, const RematBatch& batch,
             float* sums = nullptr);
  // The same for a batch whose sums are kept nowhere: they are made from the
  // first layer on, in the scratch.
  void LayerFromFirst(const DeviceCodec& codec, int layer,
                      const RematBatch& batch);
  // Of kRematBlocks blocks; 0 where the codec has none.
  static size_t SumsBytes(const DeviceCodec& codec);
  // The same of rows that the CPU's codec has decoded, in pinned memory, of one
  // block: [64, kv_dim] of K, then of V, FP32 before biases and RoPE or FP16
  // after. `host_rows_table` is a device array that holds host_rows().
  void HostLayer(int layer, bool final_stage, const uint8_t* rows,
                 const uint8_t* const* host_rows_table,
                 const BlockTarget* target);
  // Where HostLayer puts them; known after Reserve.
  const uint8_t* host_rows() const { return kv_.as<uint8_t>(); }

  // What StoreKv needs that is the same for all callers.
  StoreKvArgs StoreArgs(int layer) const;

 private:
  RematScratch Scratch(float* sums) const;

  const HyperParams& hparams_;
  const DeviceWeights& weights_;
  DeviceOps& ops_;
  const KvShape shape_;
  RopeTable rope_;
  int64_t positions_ = 0;
  DeviceMemory cos_, sin_;  // [positions_, rope_dim / 2]
  DeviceMemory latent_, kv_, sums_;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_REMAT_H_
