// The engine on the CPU: checks what callers hand in, runs the forward pass,
// seals what became full, rematerializes pages. Equal inputs give equal bits on
// every instruction set and with any number of threads.
#ifndef XCACHE_ENGINE_CPU_ENGINE_H_
#define XCACHE_ENGINE_CPU_ENGINE_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/thread_pool.h"
#include "engine/common/codec_loader.h"
#include "engine/cpu/forward.h"
#include "engine/cpu/kv.h"
#include "engine/cpu/sequence.h"
#include "engine/cpu/weights.h"
#include "engine/engine.h"
#include "engine/kernels/kernels.h"
#include "engine/model/model.h"
#include "engine/xcache/codec.h"

namespace xcache {

class CpuEngine final : public Engine {
 public:
  // REQUIRES: IsaSupported(isa), num_threads >= 1.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      std::shared_ptr<const Model> model, Isa isa, int num_threads,
      std::string profile_dir, const PackOptions& pack,
      const ProgressFn& progress);

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
  void CloseCodec(const CodecHandle& codec) override {
    codecs_.erase(codecs_.find(codec.spec()));
  }
  size_t kv_block_bytes() const override { return arena_->block_bytes(); }
  size_t sequence_bytes(const CodecHandle& codec) const override;
  absl::StatusOr<std::unique_ptr<Sequence>> NewSequence(
      const CodecHandle& codec, std::span<const TokenId> tokens,
      std::span<const KvBlockRef> blocks, RematPolicy remat) override;
  std::vector<absl::StatusOr<KvBlockRef>> Remat(
      const CodecHandle& codec, std::span<const RematJob> jobs) override;
  absl::Status Step(std::span<StepItem> items) override;

 private:
  CpuEngine(std::shared_ptr<const Model> model, Isa isa, int num_threads,
            std::string profile_dir);

  // Some layers of one of the blocks that are sealed or rematerialized
  // together.
  struct LayerTask {
    size_t block;
    LayerRange range;
    absl::Status status;
  };

  // Makes the pages of those of the step's sequences whose live block is full.
  absl::Status SealFullBlocks(std::span<StepItem> items);
  // Whether the block of a job has all layers. Block 0 has: its sinks are
  // computed layer by layer.
  bool MakesWhole(const RematJob& job) const {
    return job.whole || job.block_index == 0 || shape_.window_pattern == 1;
  }
  // Splits block `block` of `num_blocks` into tasks, of one layer of every
  // `every`.
  void AddLayerTasks(size_t block, const Codec& codec, size_t num_blocks,
                     int every, std::vector<LayerTask>* tasks) const;

  const std::shared_ptr<const Model> model_;
  const Kernels& kernels_;
  const KvShape shape_;
  const std::shared_ptr<KvArena> arena_;
  // Of blocks without the layers whose attention slides.
  const std::shared_ptr<KvArena> full_layers_arena_;
  ThreadPool pool_;
  CodecLoader loader_;
  CpuWeights weights_;
  std::unique_ptr<CpuForward> forward_;
  ModelInfo info_;
  std::map<std::string, std::unique_ptr<EngineCodec>, std::less<>> codecs_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_ENGINE_H_
