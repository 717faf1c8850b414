#include "engine/cpu_engine.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/cpu_seal.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/page.h"

namespace xcache {
namespace {

KvShape ShapeOf(const HyperParams& h) {
  return {h.num_layers, h.n_kv_heads, h.head_dim, h.d_model};
}

Digest CacheFp(const Digest& model_fp, std::string_view spec,
               const Profile* profile) {
  const auto bytes = [](const Digest& digest) {
    return std::string_view(reinterpret_cast<const char*>(digest.data()),
                            digest.size());
  };
  return Sha256()
      .Field(bytes(model_fp))
      .Field(spec)
      .Field(profile != nullptr ? bytes(profile->digest()) : "")
      .Field(std::to_string(kPageFormatVersion))
      .Finish();
}

}  // namespace

CpuEngine::CpuEngine(std::shared_ptr<const Model> model, Isa isa,
                     int num_threads, std::string profile_dir)
    : model_(std::move(model)),
      profile_dir_(std::move(profile_dir)),
      kernels_(GetKernels(isa)),
      shape_(ShapeOf(model_->hparams())),
      arena_(std::make_shared<KvArena>(CpuKvBlock::Bytes(shape_))),
      pool_(num_threads) {}

absl::StatusOr<std::unique_ptr<Engine>> CpuEngine::Create(
    std::shared_ptr<const Model> model, Isa isa, int num_threads,
    std::string profile_dir, const ProgressFn& progress) {
  std::unique_ptr<CpuEngine> engine(new CpuEngine(
      std::move(model), isa, num_threads, std::move(profile_dir)));
  const HyperParams& h = engine->model_->hparams();
  if (h.head_dim % 16 != 0 || h.head_dim > 256) {
    return absl::UnimplementedError(
        absl::StrCat("head_dim: expected a multiple of 16, at most 256, found ",
                     h.head_dim));
  }
  XC_ASSIGN_OR_RETURN(engine->weights_,
                      PackWeights(*engine->model_, engine->pool_, progress));
  engine->forward_ = std::make_unique<CpuForward>(
      *engine->model_, engine->weights_, engine->kernels_, engine->pool_,
      engine->shape_);

  ModelInfo& info = engine->info_;
  info.name = h.name;
  info.architecture = h.architecture;
  info.device = absl::StrCat("cpu/", std::string(IsaName(isa)));
  // One id for all instruction sets: the kernels' tests hold them to the same
  // bits.
  info.numerics_id = absl::StrCat("xcache-", XCACHE_VERSION, "/cpu");
  info.model_fp = engine->model_->fingerprint();
  info.num_layers = h.num_layers;
  info.d_model = h.d_model;
  info.n_heads = h.n_heads;
  info.n_kv_heads = h.n_kv_heads;
  info.head_dim = h.head_dim;
  info.vocab_size = h.vocab_size;
  info.context_length = h.context_length;
  info.num_parameters = engine->model_->num_parameters();
  info.weight_bytes = engine->weights_.bytes();
  info.kv_fp16_bytes_per_token =
      static_cast<int>(CpuKvBlock::Bytes(engine->shape_) / kBlockTokens);
  return engine;
}

absl::StatusOr<const CodecHandle*> CpuEngine::OpenCodec(
    std::string_view spec_text, const ProgressFn& progress) {
  XC_ASSIGN_OR_RETURN(const CodecSpec spec, CodecSpec::Parse(spec_text));
  XC_ASSIGN_OR_RETURN(const ProfileKind kind, ProfileOf(spec));
  std::shared_ptr<const Profile> profile;
  if (kind != ProfileKind::kNone) {
    std::shared_ptr<const Profile>& known = profiles_[kind];
    if (known == nullptr) {
      // A spec that the codec refuses must not cost a profile, but what is
      // refused shows only when the codec is made.
      XC_ASSIGN_OR_RETURN(
          known, Profile::LoadOrMake(profile_dir_, *model_, kind, progress));
    }
    profile = known;
  }
  XC_ASSIGN_OR_RETURN(std::unique_ptr<const Codec> codec,
                      MakeCodec(spec, *model_, profile.get(), kernels_.isa));
  const std::string canonical = codec->spec().ToString();
  std::unique_ptr<CpuCodecHandle>& handle = codecs_[canonical];
  if (handle == nullptr) {
    const Digest cache_fp =
        CacheFp(model_->fingerprint(), canonical, profile.get());
    handle = std::make_unique<CpuCodecHandle>(this, std::move(codec),
                                              std::move(profile), cache_fp);
  }
  return handle.get();
}

size_t CpuEngine::sequence_bytes(const CodecHandle& codec) const {
  const auto& handle = static_cast<const CpuCodecHandle&>(codec);
  return sizeof(CpuSequence) + kv_block_bytes() +
         LiveBlockRows::Bytes(shape_, handle.codec().live_rows()) +
         // Token ids and block references up to the context's end, in vectors
         // that may have doubled.
         2 * static_cast<size_t>(info_.context_length) * sizeof(TokenId) +
         2 * static_cast<size_t>(info_.context_length / kBlockTokens) *
             sizeof(KvBlockRef);
}

absl::Status CpuEngine::CheckCodec(const CodecHandle& codec) const {
  const auto* handle = dynamic_cast<const CpuCodecHandle*>(&codec);
  if (handle == nullptr || handle->engine() != this) {
    return absl::InvalidArgumentError("a codec of another engine");
  }
  return absl::OkStatus();
}

absl::Status CpuEngine::CheckTokens(std::span<const TokenId> tokens) const {
  for (TokenId token : tokens) {
    if (token < 0 || token >= info_.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token id ", token, " is not in [0, ", info_.vocab_size, ")"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Sequence>> CpuEngine::NewSequence(
    const CodecHandle& codec, std::span<const TokenId> tokens,
    std::span<const KvBlockRef> blocks) {
  XC_RETURN_IF_ERROR(CheckCodec(codec));
  XC_RETURN_IF_ERROR(CheckTokens(tokens));
  if (tokens.size() != blocks.size() * kBlockTokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        blocks.size(), " blocks need ", blocks.size() * kBlockTokens,
        " tokens, not ", tokens.size()));
  }
  if (tokens.size() > static_cast<size_t>(info_.context_length)) {
    return absl::InvalidArgumentError(
        absl::StrCat(tokens.size(), " tokens exceed the context length of ",
                     info_.context_length));
  }
  for (const KvBlockRef& block : blocks) {
    if (dynamic_cast<const CpuKvBlock*>(block.get()) == nullptr) {
      return absl::InvalidArgumentError("a block of another engine");
    }
  }
  return std::make_unique<CpuSequence>(
      static_cast<const CpuCodecHandle&>(codec), shape_, arena_, tokens,
      blocks);
}

absl::Status CpuEngine::CheckItem(const StepItem& item) const {
  const auto* sequence = dynamic_cast<const CpuSequence*>(item.sequence);
  if (sequence == nullptr) {
    return absl::InvalidArgumentError("an item without a sequence");
  }
  XC_RETURN_IF_ERROR(CheckCodec(sequence->codec()));
  if (item.tokens.empty()) {
    return absl::InvalidArgumentError("an item without tokens");
  }
  XC_RETURN_IF_ERROR(CheckTokens(item.tokens));
  const auto room = static_cast<size_t>(kBlockTokens - sequence->live_tokens());
  if (item.tokens.size() > room) {
    return absl::InvalidArgumentError(
        absl::StrCat(item.tokens.size(), " tokens cross the end of a block, ",
                     room, " tokens away"));
  }
  const size_t total = sequence->tokens().size() + item.tokens.size();
  if (total > static_cast<size_t>(info_.context_length)) {
    return absl::InvalidArgumentError(absl::StrCat(
        total, " tokens exceed the context length of ", info_.context_length));
  }
  return absl::OkStatus();
}

absl::Status CpuEngine::Step(std::span<StepItem> items) {
  std::unordered_set<const Sequence*> distinct;
  for (const StepItem& item : items) {
    XC_RETURN_IF_ERROR(CheckItem(item));
    if (!distinct.insert(item.sequence).second) {
      return absl::InvalidArgumentError("one sequence in two items");
    }
  }
  std::vector<ForwardItem> forward(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    auto& sequence = static_cast<CpuSequence&>(*items[i].sequence);
    forward[i].tokens = items[i].tokens;
    forward[i].sealed = sequence.blocks();
    forward[i].live = &sequence.live();
    forward[i].live_rows = &sequence.live_rows();
    forward[i].live_tokens = sequence.live_tokens();
    forward[i].logits_mode = items[i].logits_mode;
  }
  forward_->Run(forward);
  for (size_t i = 0; i < items.size(); ++i) {
    static_cast<CpuSequence*>(items[i].sequence)->Append(items[i].tokens);
    items[i].logits = forward[i].logits;
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
  std::vector<std::string> pages(full.size());
  std::vector<size_t> whole;  // whose layers depend on each other
  std::vector<LayerTask> tasks;
  for (size_t i = 0; i < full.size(); ++i) {
    CpuSequence& s = *full[i];
    const Codec& codec = s.cpu_codec().codec();
    pages[i] = BeginPage(s.codec().cache_fp(), s.live_index(),
                         s.tokens().last(kBlockTokens), codec.payload_bytes());
    if (codec.layers_independent()) {
      AddLayerTasks(i, codec, full.size(), &tasks);
    } else {
      whole.push_back(i);
    }
  }
  const auto seal_whole = [&](size_t i, const ParallelForFn& parallel) {
    CpuSequence& s = *full[i];
    return SealWholeBlock(*forward_, s.cpu_codec(), s.live_index(),
                          s.live_rows(), s.live(), PagePayload(pages[i]),
                          parallel);
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
    task.status =
        s.cpu_codec().codec().layers_independent()
            ? SealBlock(*forward_, s.cpu_codec(), s.live_index(), task.range,
                        s.live_rows(), s.live(), PagePayload(pages[task.block]))
            : seal_whole(task.block, nullptr);
  });
  for (const LayerTask& task : tasks) XC_RETURN_IF_ERROR(task.status);
  for (size_t i = 0; i < full.size(); ++i) {
    FinishPage(pages[i]);
    full[i]->FinishSeal(std::move(pages[i]));
  }
  return absl::OkStatus();
}

void CpuEngine::AddLayerTasks(size_t block, const Codec& codec,
                              size_t num_blocks,
                              std::vector<LayerTask>* tasks) const {
  // A few tasks for each thread, so that they end together.
  const int64_t wanted =
      pool_.num_threads() == 1
          ? 1
          : (4 * pool_.num_threads() + static_cast<int64_t>(num_blocks) - 1) /
                static_cast<int64_t>(num_blocks);
  for (const LayerRange& range : SplitLayers(codec, wanted)) {
    tasks->push_back({block, range, absl::OkStatus()});
  }
}

std::vector<absl::StatusOr<KvBlockRef>> CpuEngine::Remat(
    const CodecHandle& codec, std::span<const RematJob> jobs) {
  std::vector<absl::StatusOr<KvBlockRef>> results(jobs.size());
  if (const absl::Status status = CheckCodec(codec); !status.ok()) {
    std::fill(results.begin(), results.end(), status);
    return results;
  }
  const auto& handle = static_cast<const CpuCodecHandle&>(codec);

  std::vector<std::shared_ptr<CpuKvBlock>> blocks(jobs.size());
  std::vector<absl::Status> statuses(jobs.size());
  std::vector<std::span<const uint8_t>> payloads(jobs.size());
  const auto num_jobs = static_cast<int64_t>(jobs.size());
  pool_.ParallelFor(num_jobs, [&](int64_t i, int) {
    const auto at = static_cast<size_t>(i);
    const RematJob& job = jobs[at];
    statuses[at] = CheckTokens(job.tokens);
    if (!statuses[at].ok()) return;
    auto payload = CheckPage(handle, job.block_index, job.tokens, job.page);
    if (payload.ok()) {
      payloads[at] = *payload;
      blocks[at] = std::make_shared<CpuKvBlock>(shape_, arena_);
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
    item.live = blocks[i].get();
    sinks.push_back(item);
  }
  forward_->Run(sinks);
  forward_->ExtendRope(positions);

  std::vector<LayerTask> tasks;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (statuses[i].ok()) {
      AddLayerTasks(i, handle.codec(), jobs.size(), &tasks);
    }
  }
  pool_.ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t t, int) {
    LayerTask& task = tasks[static_cast<size_t>(t)];
    task.status =
        RematBlock(*forward_, handle, jobs[task.block].block_index, task.range,
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
