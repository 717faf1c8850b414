// The engine on a device (ops.h): checks what callers hand in, runs the
// forward pass, seals what became full, rematerializes pages. Knows no CUDA: on
// a GPU the operations are those of the CUDA plugin, in tests they are emulated
// on the host.
#ifndef XCACHE_ENGINE_DEVICE_ENGINE_H_
#define XCACHE_ENGINE_DEVICE_ENGINE_H_

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"
#include "engine/common/codec_loader.h"
#include "engine/device/forward.h"
#include "engine/device/memory.h"
#include "engine/device/ops.h"
#include "engine/device/pages.h"
#include "engine/device/remat.h"
#include "engine/device/sequence.h"
#include "engine/device/weight_product.h"
#include "engine/device/weights.h"
#include "engine/engine.h"
#include "engine/kernels/isa.h"
#include "engine/model/model.h"

namespace xcache::cuda {

struct DeviceEngineOptions {
  Isa isa{};            // of the CPU's codecs, which seal
  int num_threads = 1;  // of the host: upload, sealing
  std::string profile_dir;
  // Most bytes of K/V blocks and live rows; 0: nine tenths of what is free once
  // the weights are loaded.
  size_t pool_bytes = 0;
  // Most bytes of the pool that a step uses for the sums of cross-layer codecs
  // of blocks kept as payloads; unset: an eighth of the pool. Beyond them, or
  // where the pool has no room, each layer makes the sums from the first layer
  // on.
  std::optional<size_t> step_sums_bytes;
  // Decode every codec on the CPU, as those without kernels are.
  bool host_codecs = false;
  // How the device's codecs make K and V where they have two ways.
  RematKernel remat_kernel = RematKernel::kFused;
  WeightPolicy weights = WeightPolicy::kAuto;
  // How weights that stay quantized are multiplied.
  WeightKernel weight_kernel = WeightKernel::kFused;
};

class DeviceEngine final : public Engine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      std::shared_ptr<const Model> model, std::shared_ptr<DeviceOps> ops,
      const DeviceEngineOptions& options, const ProgressFn& progress);

  const ModelInfo& info() const override { return info_; }
  absl::Status PrepareCodec(std::string_view spec,
                            const ProgressFn& progress) override {
    return loader_.Prepare(spec, progress);
  }
  absl::StatusOr<const CodecHandle*> OpenCodec(
      std::string_view spec, const ProgressFn& progress) override;
  absl::StatusOr<size_t> codec_bytes(std::string_view spec) const override {
    return loader_.MaxBytes(spec);
  }
  void CloseCodec(const CodecHandle& codec) override;
  size_t kv_block_bytes() const override { return shape_.tile_bytes(); }
  size_t sequence_bytes(const CodecHandle& codec) const override;
  // RESOURCE_EXHAUSTED, beside what the interface says, from all three: the
  // pool is at its cap. Nothing has changed then. Blocks of RematPolicy::kStep
  // are kept as payloads where the device has kernels for the codec; block 0
  // never is.
  absl::StatusOr<std::unique_ptr<Sequence>> NewSequence(
      const CodecHandle& codec, std::span<const TokenId> tokens,
      std::span<const KvBlockRef> blocks, RematPolicy remat) override;
  // Some runs of blocks, so that all but the first are copied meanwhile.
  int64_t max_useful_remat_jobs() const override { return 4 * kRematBlocks; }
  int64_t StagePages(const CodecHandle& codec,
                     std::span<const RematJob> jobs) override;
  std::vector<absl::StatusOr<KvBlockRef>> Remat(
      const CodecHandle& codec, std::span<const RematJob> jobs) override;
  absl::Status Step(std::span<StepItem> items) override;

  const DevicePool& pool() const { return *pool_; }

 private:
  DeviceEngine(std::shared_ptr<const Model> model,
               std::shared_ptr<DeviceOps> ops,
               const DeviceEngineOptions& options);

  // INTERNAL where the device has reported an error.
  absl::Status CheckDevice() const;
  // Of the two pieces one is empty.
  std::shared_ptr<const DeviceKvBlock> NewBlock(const DeviceCodecHandle& codec,
                                                PoolPiece tiles,
                                                PoolPiece payload) const;
  PoolPiece NewTiles() const { return PoolPiece(pool_, shape_.tile_bytes()); }
  // The jobs' pages; the status of one that is not what its job says.
  std::vector<PageJob> CheckPages(const DeviceCodecHandle& codec,
                                  std::span<const RematJob> jobs);
  // Computes the sinks of the blocks that begin a sequence, into their tiles.
  absl::Status RunSinks(std::span<const RematJob> jobs,
                        std::span<const PageJob> pages);
  absl::Status SealFullBlocks(std::span<StepItem> items);
  absl::Status SealBlocks(const DeviceCodecHandle& codec,
                          std::span<DeviceSequence* const> full);

  const std::shared_ptr<const Model> model_;
  const std::shared_ptr<DeviceOps> ops_;
  const DeviceEngineOptions options_;
  const KvShape shape_;
  ThreadPool threads_;
  CodecLoader loader_;
  std::shared_ptr<DevicePool> pool_;
  std::unique_ptr<DeviceWeights> weights_;
  std::unique_ptr<WeightProduct> product_;
  std::unique_ptr<DeviceRemat> remat_;
  std::unique_ptr<DeviceForward> forward_;
  std::unique_ptr<DevicePages> pages_;
  ModelInfo info_;
  std::map<std::string, std::unique_ptr<DeviceCodecHandle>, std::less<>>
      codecs_;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_ENGINE_H_
