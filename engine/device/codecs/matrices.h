// The quantized matrices that a codec's payloads hold (its PayloadPlan), as the
// kernels read and write them, in the layout of the CPU's coder
// (engine/xcache/block_coder.h). What their rows mean is the codec's business.
#ifndef XCACHE_ENGINE_DEVICE_CODECS_MATRICES_H_
#define XCACHE_ENGINE_DEVICE_CODECS_MATRICES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/status_macros.h"
#include "engine/device/codecs/codec.h"
#include "engine/device/memory.h"
#include "engine/device/ops.h"
#include "engine/xcache/payload_plan.h"
#include "engine/xcache/tile_coder.h"

namespace xcache::cuda {

// A matrix's tiles cut into the units that kernels quantize, and the bytes of
// the encoded matrix.
struct TileUnits {
  std::vector<TileUnit> units;
  size_t bytes = 0;
};
TileUnits MakeTileUnits(std::span<const Tile> tiles, bool fp8);

// What decoding takes from a batch of either kind; the caller adds where to.
template <typename Batch>
DecodeArgs DecodeArgsOf(const Batch& batch) {
  DecodeArgs args;
  args.payloads = batch.payloads;
  args.invalid = batch.invalid;
  args.num_blocks = batch.num_blocks;
  return args;
}

// Rows of blocks to be encoded. All arrays are the device's.
struct EncodeArgs {
  const SealSource* sources = nullptr;  // [num_blocks], for the payloads
  const float* rows = nullptr;  // [num_blocks * 64, channels]; null: those of
  int64_t layer_offset = 0;     // the sources, from here on
  float* scratch = nullptr;     // [num_blocks, channels, 64] to work in, for
                                // matrices per token and for the sources' rows
  float* ranges = nullptr;      // [num_blocks, max_units(), 2] to work in
  int32_t* invalid = nullptr;   // [num_blocks]
  int num_blocks = 0;
};

// What encoding takes from a batch; the caller adds the rows.
inline EncodeArgs EncodeArgsOf(const SealBatch& batch,
                               const SealScratch& scratch) {
  EncodeArgs args;
  args.ranges = scratch.ranges;
  args.invalid = batch.invalid;
  args.num_blocks = batch.num_blocks;
  return args;
}

// Immutable after Upload.
class DeviceMatrices {
 public:
  // `plan` must outlive it.
  DeviceMatrices(DeviceOps& ops, const PayloadPlan& plan);
  absl::Status Upload(DeviceOps& ops);

  size_t max_units() const { return max_units_; }

  // A layer's part, as kernels take it.
  TokenMatrix PerToken(int layer, size_t part) const;
  ChannelMatrix PerChannel(int layer, size_t part) const;

  // Enqueues the work for a layer's part.
  void Decode(DeviceOps& ops, int layer, size_t part,
              const DecodeArgs& args) const;
  // The CPU coder's bytes for the same rows.
  void Encode(DeviceOps& ops, int layer, size_t part,
              const EncodeArgs& args) const;

 private:
  // One of the plan's matrices: where its tables begin.
  struct Tables {
    size_t first_entry = 0;
    size_t first_unit = 0;
    int num_units = 0;
  };
  // Groups of tokens end with the block.
  int row_group() const;
  void AddEntries(const PayloadMatrix& matrix, const Tables& tables);
  const PayloadMatrix& At(int layer, size_t part) const {
    return plan_.matrices()[plan_.part(layer, part).matrix];
  }

  const PayloadPlan& plan_;
  std::vector<Tables> tables_;  // of plan_.matrices()
  std::vector<ChannelEntry> entries_;
  std::vector<TileUnit> units_;
  size_t max_units_ = 0;
  DeviceMemory device_entries_, device_units_;
};

// A codec whose payloads hold such matrices.
class MatrixCodec : public DeviceCodec {
 public:
  explicit MatrixCodec(const DeviceCodecSources& sources)
      : plan_(sources.codec->plan()),
        d_(plan_.shape().d_model),
        kv_dim_(plan_.shape().kv_dim),
        fused_(UsesFusedRemat(sources)),
        matrices_(*sources.ops, plan_) {}
  // What it reads goes to the device, before anything else is asked of it.
  virtual absl::Status Upload(const DeviceCodecSources& sources) {
    return matrices_.Upload(*sources.ops);
  }
  size_t seal_units() const override { return matrices_.max_units(); }

 protected:
  const PayloadPlan& plan_;
  const int d_;
  const int kv_dim_;
  const bool fused_;
  DeviceMatrices matrices_;
};

template <typename T>
absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeMatrixCodec(
    const DeviceCodecSources& sources) {
  auto codec = std::make_unique<T>(sources);
  XC_RETURN_IF_ERROR(codec->Upload(sources));
  return std::unique_ptr<const DeviceCodec>(std::move(codec));
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_CODECS_MATRICES_H_
