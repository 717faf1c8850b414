#include "engine/cpu/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/common/checks.h"
#include "engine/cpu/seal.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/page.h"

namespace xcache {
namespace {

KvShape ShapeOf(const HyperParams& h) {
  return {h.num_layers, h.n_kv_heads, h.head_dim, h.d_model,
          h.window > 0 ? h.window_pattern : 1};
}

}  // namespace

CpuEngine::CpuEngine(std::shared_ptr<const Model> model, Isa isa,
                     int num_threads, std::string profile_dir)
    : model_(std::move(model)),
      kernels_(GetKernels(isa)),
      shape_(ShapeOf(model_->hparams())),
      arena_(std::make_shared<KvArena>(shape_.tile_bytes())),
      full_layers_arena_(
          std::make_shared<KvArena>(shape_.tile_bytes(shape_.full_layers()))),
      pool_(num_threads),
      loader_(model_, std::move(profile_dir), isa,
              [this](TokenId token, float* out) {
                weights_.Embedding(token, out);
              }) {}

absl::StatusOr<std::unique_ptr<Engine>> CpuEngine::Create(
    std::shared_ptr<const Model> model, Isa isa, int num_threads,
    std::string profile_dir, const PackOptions& pack,
    const ProgressFn& progress) {
  std::unique_ptr<CpuEngine> engine(new CpuEngine(
      std::move(model), isa, num_threads, std::move(profile_dir)));
  const HyperParams& h = engine->model_->hparams();
  if (h.head_dim % 16 != 0 || h.head_dim > 256) {
    return absl::UnimplementedError(
        absl::StrCat("head_dim: expected a multiple of 16, at most 256, found ",
                     h.head_dim));
  }
  XC_ASSIGN_OR_RETURN(engine->weights_, PackWeights(*engine->model_, pack,
                                                    engine->pool_, progress));
  engine->forward_ = std::make_unique<CpuForward>(
      *engine->model_, engine->weights_, engine->kernels_, engine->pool_,
      engine->shape_);

  ModelInfo& info = engine->info_;
  info = DescribeModel(*engine->model_);
  info.device = absl::StrCat("cpu/", std::string(IsaName(isa)));
  // One id for all instruction sets: the kernels' tests hold them to the same
  // bits. 2: Q6_K weights have the file's values, where 1 requantized them.
  info.numerics_id = absl::StrCat("xcache-", XCACHE_VERSION, "/cpu/2");
  info.weight_bytes = engine->weights_.bytes();
  return engine;
}

absl::StatusOr<const CodecHandle*> CpuEngine::OpenCodec(
    std::string_view spec, const ProgressFn& progress) {
  XC_ASSIGN_OR_RETURN(LoadedCodec loaded, loader_.Load(spec, progress));
  std::unique_ptr<EngineCodec>& handle = codecs_[loaded.spec];
  if (handle == nullptr) {
    handle = std::make_unique<EngineCodec>(this, std::move(loaded), shape_);
  }
  return handle.get();
}

size_t CpuEngine::sequence_bytes(const CodecHandle& codec) const {
  const auto& handle = static_cast<const EngineCodec&>(codec);
  // The window's blocks, and of those before the last one the page and what it
  // gives back.
  const auto paged =
      static_cast<size_t>(codec.exact_window() / kBlockTokens - 1);
  return sizeof(CpuSequence) + (2 * paged + 1) * kv_block_bytes() +
         paged * PageBytes(handle.codec().payload_bytes()) +
         handle.live_rows().bytes() + BookBytes(info_);
}

absl::StatusOr<std::unique_ptr<Sequence>> CpuEngine::NewSequence(
    const CodecHandle& codec, std::span<const TokenId> tokens,
    std::span<const KvBlockRef> blocks, RematPolicy /*remat*/) {
  XC_RETURN_IF_ERROR(CheckCodec(*this, codec));
  XC_RETURN_IF_ERROR(CheckPrefix(info_, tokens, blocks.size()));
  XC_RETURN_IF_ERROR(CheckBlocks<CpuKvBlock>(blocks));
  const auto num_rows = static_cast<int64_t>(tokens.size());
  if (num_rows % codec.exact_window() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected tokens of full windows of ",
                     codec.exact_window(), ", found ", num_rows));
  }
  if (const int64_t rows = RowsToGoOnFrom(info_, codec, blocks, num_rows);
      rows < num_rows) {
    return absl::InvalidArgumentError(absl::StrCat(
        "row ", num_rows, " sees a block that is not whole where attention ",
        "slides: with these blocks row ", rows, " may be the next one"));
  }
  return std::make_unique<CpuSequence>(static_cast<const EngineCodec&>(codec),
                                       shape_, arena_, tokens, blocks);
}

absl::Status CpuEngine::Step(std::span<StepItem> items) {
  XC_RETURN_IF_ERROR(CheckStep(*this, items));
  std::vector<ForwardItem> forward(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    auto& sequence = static_cast<CpuSequence&>(*items[i].sequence);
    forward[i].tokens = items[i].tokens;
    forward[i].sealed = sequence.blocks();
    forward[i].live = sequence.live();
    forward[i].live_rows = &sequence.live_rows();
    forward[i].live_tokens = sequence.live_tokens();
    forward[i].logits_mode = items[i].logits_mode;
  }
  forward_->Run(forward);
  for (size_t i = 0; i < items.size(); ++i) {
    static_cast<CpuSequence*>(items[i].sequence)->Append(items[i].tokens);
    items[i].logits = forward[i].logits;
    items[i].hidden = forward[i].hidden;
  }
  return SealFullBlocks(items);
}

absl::Status CpuEngine::SealFullBlocks(std::span<StepItem> items) {
  std::vector<CpuSequence*> full;
  for (const StepItem& item : items) {
    auto* sequence = static_cast<CpuSequence*>(item.sequence);
    if (sequence->live_tokens() == 0) full.push_back(sequence);
  }
  if (full.empty()) return absl::OkStatus();
  std::vector<CpuSequence::Seal> seals;
  std::vector<std::string> pages(full.size());
  std::vector<size_t> whole;  // whose layers depend on each other
  std::vector<LayerTask> tasks;
  for (size_t i = 0; i < full.size(); ++i) {
    CpuSequence& s = *full[i];
    const Codec& codec = s.codec().codec();
    seals.push_back(s.BeginSeal());
    pages[i] = BeginPage(s.codec().cache_fp(), seals[i].index,
                         s.tokens().last(kBlockTokens), codec.payload_bytes(),
                         PageVersion(codec));
    if (codec.layers_independent()) {
      AddLayerTasks(i, codec, full.size(), /*every=*/1, &tasks);
    } else {
      whole.push_back(i);
    }
  }
  const auto seal_whole = [&](size_t i, const ParallelForFn& parallel) {
    CpuSequence& s = *full[i];
    return SealWholeBlock(*forward_, s.codec(), seals[i],
                          s.tokens().last(kBlockTokens), s.live_rows(),
                          PagePayload(pages[i]), parallel);
  };
  // A block for each thread, as long as there are; what is left over is worked
  // on together.
  const size_t alone =
      whole.size() - whole.size() % static_cast<size_t>(pool_.num_threads());
  for (size_t w = 0; w < alone; ++w) {
    tasks.push_back({whole[w], {}, absl::OkStatus()});
  }
  for (size_t w = alone; w < whole.size(); ++w) {
    XC_RETURN_IF_ERROR(seal_whole(
        whole[w],
        [this](int64_t num_tasks, const std::function<void(int64_t)>& fn) {
          pool_.ParallelFor(num_tasks, [&](int64_t task, int) { fn(task); });
        }));
  }
  pool_.ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t t, int) {
    LayerTask& task = tasks[static_cast<size_t>(t)];
    CpuSequence& s = *full[task.block];
    task.status = s.codec().codec().layers_independent()
                      ? SealBlock(*forward_, s.codec(), seals[task.block],
                                  task.range, s.tokens().last(kBlockTokens),
                                  s.live_rows(), PagePayload(pages[task.block]))
                      : seal_whole(task.block, nullptr);
  });
  for (const LayerTask& task : tasks) XC_RETURN_IF_ERROR(task.status);
  for (size_t i = 0; i < full.size(); ++i) {
    const Codec& codec = full[i]->codec().codec();
    if (codec.variable_size()) {
      ShrinkPage(pages[i], codec.used_bytes(PagePayload(pages[i])));
    }
    FinishPage(pages[i]);
    full[i]->FinishSeal(std::move(pages[i]));
  }
  return absl::OkStatus();
}

void CpuEngine::AddLayerTasks(size_t block, const Codec& codec,
                              size_t num_blocks, int every,
                              std::vector<LayerTask>* tasks) const {
  // A few tasks for each thread, so that they end together.
  const int64_t wanted =
      pool_.num_threads() == 1
          ? 1
          : (4 * pool_.num_threads() + static_cast<int64_t>(num_blocks) - 1) /
                static_cast<int64_t>(num_blocks);
  for (LayerRange range : codec.SplitLayers(wanted)) {
    range.every = every;
    tasks->push_back({block, range, absl::OkStatus()});
  }
}

std::vector<absl::StatusOr<KvBlockRef>> CpuEngine::Remat(
    const CodecHandle& codec, std::span<const RematJob> jobs) {
  std::vector<absl::StatusOr<KvBlockRef>> results(jobs.size());
  if (const absl::Status status = CheckCodec(*this, codec); !status.ok()) {
    std::fill(results.begin(), results.end(), status);
    return results;
  }
  const auto& handle = static_cast<const EngineCodec&>(codec);

  std::vector<std::shared_ptr<CpuKvBlock>> blocks(jobs.size());
  std::vector<absl::Status> statuses(jobs.size());
  std::vector<std::span<const uint8_t>> payloads(jobs.size());
  const auto num_jobs = static_cast<int64_t>(jobs.size());
  pool_.ParallelFor(num_jobs, [&](int64_t i, int) {
    const auto at = static_cast<size_t>(i);
    const RematJob& job = jobs[at];
    statuses[at] = CheckTokenIds(job.tokens, info_.vocab_size);
    if (!statuses[at].ok()) return;
    auto payload =
        CheckPage(handle.cache_fp(), job.block_index, job.tokens, job.page);
    if (payload.ok()) {
      payloads[at] = *payload;
      const bool whole = MakesWhole(job);
      blocks[at] = std::make_shared<CpuKvBlock>(
          shape_, whole ? arena_ : full_layers_arena_, whole);
    } else {
      statuses[at] = payload.status();
    }
  });

  // Sinks are not in the page: they are computed again, into the block.
  std::vector<ForwardItem> sinks;
  int64_t positions = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (!statuses[i].ok()) continue;
    positions = std::max(positions, (jobs[i].block_index + 1) * kBlockTokens);
    if (jobs[i].block_index != 0) continue;
    ForwardItem item;
    item.tokens = jobs[i].tokens.first(kSinkTokens);
    item.live = std::span(&blocks[i], 1);
    sinks.push_back(item);
  }
  forward_->Run(sinks);
  forward_->ExtendRope(positions);

  std::vector<LayerTask> tasks;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (statuses[i].ok()) {
      AddLayerTasks(i, handle.codec(), jobs.size(),
                    blocks[i]->whole() ? 1 : shape_.window_pattern, &tasks);
    }
  }
  pool_.ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t t, int) {
    LayerTask& task = tasks[static_cast<size_t>(t)];
    task.status = RematBlock(*forward_, handle, jobs[task.block].block_index,
                             jobs[task.block].tokens, task.range,
                             payloads[task.block], *blocks[task.block]);
  });
  for (const LayerTask& task : tasks) statuses[task.block].Update(task.status);
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (statuses[i].ok()) {
      results[i] = std::move(blocks[i]);
    } else {
      results[i] = statuses[i];
    }
  }
  return results;
}

}  // namespace xcache
