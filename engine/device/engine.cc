#include "engine/device/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/common/checks.h"
#include "engine/device/kernels/attention.h"
#include "engine/xcache/little_endian.h"
#include "engine/xcache/page.h"

namespace xcache::cuda {
namespace {

// The part of the pool that the sums of a step may take. A block's X^ is FP32
// of one layer, its K and V are FP16 of all: a fourth to a thirtieth of them.
constexpr size_t kStepSumsShare = 8;

KvShape ShapeOf(const HyperParams& h) {
  return {h.num_layers, h.n_kv_heads, h.head_dim, h.d_model};
}

absl::Status PoolExhausted(const DevicePool& pool) {
  return absl::ResourceExhaustedError(
      absl::StrCat("device page pool: ", pool.used_bytes(),
                   " bytes are used of at most ", pool.cap_bytes()));
}

}  // namespace

DeviceEngine::DeviceEngine(std::shared_ptr<const Model> model,
                           std::shared_ptr<DeviceOps> ops,
                           const DeviceEngineOptions& options)
    : model_(std::move(model)),
      ops_(std::move(ops)),
      options_(options),
      shape_(ShapeOf(model_->hparams())),
      threads_(options.num_threads),
      loader_(model_, options.profile_dir, options.isa) {}

absl::StatusOr<std::unique_ptr<Engine>> DeviceEngine::Create(
    std::shared_ptr<const Model> model, std::shared_ptr<DeviceOps> ops,
    const DeviceEngineOptions& options, const ProgressFn& progress) {
  std::unique_ptr<DeviceEngine> engine(
      new DeviceEngine(std::move(model), std::move(ops), options));
  const HyperParams& h = engine->model_->hparams();
  XC_RETURN_IF_ERROR(CheckIsPlainDecoder(*engine->model_, "the device engine"));
  if (h.head_dim % 16 != 0 || h.head_dim > kMaxHeadDim) {
    return absl::UnimplementedError(
        absl::StrCat("head_dim: expected a multiple of 16, at most ",
                     kMaxHeadDim, ", found ", h.head_dim));
  }
  DeviceOps& device = *engine->ops_;
  XC_ASSIGN_OR_RETURN(
      engine->weights_,
      DeviceWeights::Create(*engine->model_, device, options.weights,
                            engine->threads_, progress));
  engine->product_ =
      std::make_unique<WeightProduct>(device, options.weight_kernel);
  XC_RETURN_IF_ERROR(engine->product_->Reserve(engine->weights_->matrices()));
  size_t cap = options.pool_bytes;
  const DeviceInfo found = device.info();
  if (cap == 0) cap = found.free_bytes / 10 * 9;
  engine->pool_ = std::make_shared<DevicePool>(engine->ops_, cap);
  engine->remat_ = std::make_unique<DeviceRemat>(
      *engine->model_, *engine->weights_, device, engine->shape_);
  const size_t sums_bytes =
      options.step_sums_bytes.value_or(cap / kStepSumsShare);
  engine->forward_ = std::make_unique<DeviceForward>(
      *engine->model_, *engine->weights_, *engine->product_, device,
      *engine->remat_, engine->pool_, sums_bytes, engine->shape_);
  engine->pages_ = std::make_unique<DevicePages>(
      device, *engine->remat_, engine->threads_, engine->shape_);

  ModelInfo& info = engine->info_;
  info = DescribeModel(*engine->model_);
  info.device = absl::StrCat("cuda:", found.ordinal, "/", found.name);
  // Products are the vendor library's, so equal bits are only to be had from
  // equal hardware.
  info.numerics_id =
      absl::StrCat("xcache-", XCACHE_VERSION, "/cuda/", found.capability_major,
                   ".", found.capability_minor, "/", found.name);
  if (options.remat_kernel == RematKernel::kTwoStep) {
    info.numerics_id += "/two-step";
  }
  if (engine->weights_->quantized()) {
    info.numerics_id += engine->product_->kernel() == WeightKernel::kFused
                            ? "/quantized"
                            : "/quantized-two-step";
  }
  info.weight_bytes = static_cast<int64_t>(engine->weights_->bytes());
  XC_RETURN_IF_ERROR(engine->CheckDevice());
  return engine;
}

absl::Status DeviceEngine::CheckDevice() const {
  const char* error = ops_->error();
  if (error == nullptr) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(info_.device, ": ", error));
}

void DeviceEngine::CloseCodec(const CodecHandle& codec) {
  // Kernels under way read the codec's matrices.
  ops_->Synchronize(StreamId::kCompute);
  const auto it = codecs_.find(codec.spec());
  pages_->Forget(*it->second);
  codecs_.erase(it);
}

absl::StatusOr<const CodecHandle*> DeviceEngine::OpenCodec(
    std::string_view spec, const ProgressFn& progress) {
  XC_ASSIGN_OR_RETURN(LoadedCodec loaded, loader_.Load(spec, progress));
  if (loaded.codec->variable_size() || loaded.codec->wants_tokens()) {
    return absl::UnimplementedError(absl::StrCat(
        "codec ", loaded.codec->spec().name,
        ": expected a codec of pages of one size, which a GPU can hold; this "
        "one runs on the CPU alone (--device cpu)"));
  }
  if (loaded.exact_window != kBlockTokens) {
    return absl::UnimplementedError(absl::StrCat(
        "codec ", loaded.spec, ": a GPU's window is ", kBlockTokens,
        " tokens; a wider one runs on the CPU alone ", "(--device cpu)"));
  }
  std::unique_ptr<DeviceCodecHandle>& handle = codecs_[loaded.spec];
  if (handle == nullptr) {
    DeviceCodecSources sources;
    sources.codec = loaded.codec.get();
    sources.profile = loaded.profile.get();
    sources.model = model_.get();
    sources.ops = ops_.get();
    sources.pool = &threads_;
    sources.remat_kernel = options_.remat_kernel;
    std::unique_ptr<const DeviceCodec> device_codec;
    if (!options_.host_codecs) {
      XC_ASSIGN_OR_RETURN(device_codec, MakeDeviceCodec(sources));
    }
    handle = std::make_unique<DeviceCodecHandle>(
        this, std::move(loaded), std::move(device_codec), shape_);
    XC_RETURN_IF_ERROR(CheckDevice());
  }
  return handle.get();
}

size_t DeviceEngine::sequence_bytes(const CodecHandle& codec) const {
  const auto& handle = static_cast<const DeviceCodecHandle&>(codec);
  return sizeof(DeviceSequence) + kv_block_bytes() +
         handle.live_rows().bytes() + BookBytes(info_);
}

absl::StatusOr<std::unique_ptr<Sequence>> DeviceEngine::NewSequence(
    const CodecHandle& codec, std::span<const TokenId> tokens,
    std::span<const KvBlockRef> blocks, RematPolicy remat) {
  XC_RETURN_IF_ERROR(CheckCodec(*this, codec));
  XC_RETURN_IF_ERROR(CheckPrefix(info_, tokens, blocks.size()));
  XC_RETURN_IF_ERROR(CheckBlocks<DeviceKvBlock>(blocks));
  const auto& handle = static_cast<const DeviceCodecHandle&>(codec);
  PoolPiece live_rows;
  if (const size_t bytes = handle.live_rows().bytes(); bytes > 0) {
    live_rows = PoolPiece(pool_, bytes);
    if (live_rows.get() == nullptr) return PoolExhausted(*pool_);
  }
  return std::make_unique<DeviceSequence>(handle, std::move(live_rows), tokens,
                                          blocks, remat);
}

absl::Status DeviceEngine::Step(std::span<StepItem> items) {
  XC_RETURN_IF_ERROR(CheckStep(*this, items));
  std::vector<DeviceForwardItem> forward(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    auto& sequence = static_cast<DeviceSequence&>(*items[i].sequence);
    if (sequence.live_tiles() == nullptr) {
      PoolPiece tiles = NewTiles();
      if (tiles.get() == nullptr) return PoolExhausted(*pool_);
      sequence.set_live_tiles(std::move(tiles));
    }
    const LiveRowsLayout& layout = sequence.handle().live_rows();
    DeviceForwardItem& item = forward[i];
    item.tokens = items[i].tokens;
    item.sealed = sequence.blocks();
    item.codec = sequence.handle().device_codec();
    item.live_tiles = sequence.live_tiles();
    item.unit_x = layout.unit_x(sequence.live_rows());
    item.rms = layout.rms(sequence.live_rows());
    item.k_pre = layout.k_pre(sequence.live_rows());
    item.v_pre = layout.v_pre(sequence.live_rows());
    item.live_tokens = sequence.live_tokens();
    item.logits_mode = items[i].logits_mode;
  }
  XC_RETURN_IF_ERROR(forward_->Run(forward));
  XC_RETURN_IF_ERROR(CheckDevice());
  for (size_t i = 0; i < items.size(); ++i) {
    static_cast<DeviceSequence*>(items[i].sequence)->Append(items[i].tokens);
    items[i].logits = forward[i].logits;
    items[i].hidden = forward[i].hidden;
  }
  return SealFullBlocks(items);
}

std::shared_ptr<const DeviceKvBlock> DeviceEngine::NewBlock(
    const DeviceCodecHandle& codec, PoolPiece tiles, PoolPiece payload) const {
  const size_t bytes = payload.get() != nullptr ? codec.codec().payload_bytes()
                                                : shape_.tile_bytes();
  return std::make_shared<DeviceKvBlock>(std::move(tiles), std::move(payload),
                                         bytes);
}

absl::Status DeviceEngine::SealFullBlocks(std::span<StepItem> items) {
  std::map<const DeviceCodecHandle*, std::vector<DeviceSequence*>> full;
  for (const StepItem& item : items) {
    auto* sequence = static_cast<DeviceSequence*>(item.sequence);
    if (sequence->live_tokens() == 0) {
      full[&sequence->handle()].push_back(sequence);
    }
  }
  for (const auto& [codec, sequences] : full) {
    XC_RETURN_IF_ERROR(SealBlocks(*codec, sequences));
  }
  return absl::OkStatus();
}

absl::Status DeviceEngine::SealBlocks(const DeviceCodecHandle& codec,
                                      std::span<DeviceSequence* const> full) {
  const size_t payload_bytes = codec.codec().payload_bytes();
  std::vector<std::string> pages(full.size());
  std::vector<SealJob> seals(full.size());
  for (size_t i = 0; i < full.size(); ++i) {
    const DeviceSequence& s = *full[i];
    pages[i] = BeginPage(codec.cache_fp(), s.live_index(),
                         s.tokens().last(kBlockTokens), payload_bytes);
    seals[i] = {s.live_index(), s.live_tiles(), s.live_rows(),
                PagePayload(pages[i])};
  }
  XC_RETURN_IF_ERROR(pages_->Seal(codec, seals));

  std::vector<PoolPiece> kept(full.size());
  std::vector<PageJob> remat(full.size());
  for (size_t i = 0; i < full.size(); ++i) {
    remat[i].block_index = seals[i].block_index;
    remat[i].payload = seals[i].payload;
    remat[i].tiles = full[i]->live_tiles();
    if (!codec.KeepsPayload(full[i]->remat(), seals[i].block_index)) continue;
    // Where the pool has no room for the payload, the block stays K/V.
    kept[i] = PoolPiece(pool_, payload_bytes);
    remat[i].kept_payload = static_cast<uint8_t*>(kept[i].get());
  }
  XC_RETURN_IF_ERROR(pages_->Remat(codec, remat, /*keep_staged=*/true));
  XC_RETURN_IF_ERROR(CheckDevice());
  for (size_t i = 0; i < full.size(); ++i) {
    if (!remat[i].status.ok()) {
      return absl::InternalError(
          absl::StrCat("sealing: ", std::string(remat[i].status.message())));
    }
    FinishPage(pages[i]);
    // As a payload the tiles are not needed: the next block takes them over.
    PoolPiece tiles;
    if (kept[i].get() == nullptr) tiles = full[i]->TakeLiveTiles();
    full[i]->FinishSeal(std::move(pages[i]),
                        NewBlock(codec, std::move(tiles), std::move(kept[i])));
  }
  return absl::OkStatus();
}

absl::Status DeviceEngine::RunSinks(std::span<const RematJob> jobs,
                                    std::span<const PageJob> pages) {
  std::vector<DeviceForwardItem> sinks;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (!pages[i].status.ok() || jobs[i].block_index != 0) continue;
    DeviceForwardItem item;
    item.tokens = jobs[i].tokens.first(kSinkTokens);
    item.live_tiles = pages[i].tiles;
    sinks.push_back(item);
  }
  return forward_->Run(sinks);
}

std::vector<PageJob> DeviceEngine::CheckPages(const DeviceCodecHandle& codec,
                                              std::span<const RematJob> jobs) {
  std::vector<PageJob> pages(jobs.size());
  threads_.ParallelFor(static_cast<int64_t>(jobs.size()), [&](int64_t i, int) {
    const RematJob& job = jobs[static_cast<size_t>(i)];
    PageJob& page = pages[static_cast<size_t>(i)];
    page.block_index = job.block_index;
    page.status = CheckTokenIds(job.tokens, info_.vocab_size);
    if (!page.status.ok()) return;
    auto payload =
        CheckPage(codec.cache_fp(), job.block_index, job.tokens, job.page);
    page.status = payload.status();
    if (!payload.ok()) return;
    page.payload = *payload;
    page.checksum = LoadLe32(job.page.data() + job.page.size() - 4);
  });
  return pages;
}

int64_t DeviceEngine::StagePages(const CodecHandle& codec,
                                 std::span<const RematJob> jobs) {
  if (!CheckCodec(*this, codec).ok()) return 0;
  const auto& handle = static_cast<const DeviceCodecHandle&>(codec);
  jobs = jobs.first(std::min(jobs.size(), size_t{kRematBlocks}));
  // What is kept as its payload is copied to where it stays.
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (handle.KeepsPayload(jobs[i].remat, jobs[i].block_index)) {
      jobs = jobs.first(i);
    }
  }
  const std::vector<PageJob> pages = CheckPages(handle, jobs);
  size_t num_good = 0;
  while (num_good < pages.size() && pages[num_good].status.ok()) ++num_good;
  return pages_->Stage(handle, std::span(pages).first(num_good));
}

std::vector<absl::StatusOr<KvBlockRef>> DeviceEngine::Remat(
    const CodecHandle& codec, std::span<const RematJob> jobs) {
  std::vector<absl::StatusOr<KvBlockRef>> results(jobs.size());
  if (const absl::Status status = CheckCodec(*this, codec); !status.ok()) {
    std::fill(results.begin(), results.end(), status);
    return results;
  }
  const auto& handle = static_cast<const DeviceCodecHandle&>(codec);
  std::vector<PageJob> pages = CheckPages(handle, jobs);
  std::vector<PoolPiece> tiles(jobs.size()), kept(jobs.size());
  std::vector<PageJob> good;
  std::vector<size_t> index_of;
  for (size_t i = 0; i < jobs.size(); ++i) {
    PageJob& page = pages[i];
    if (!page.status.ok()) continue;
    const bool keeps = handle.KeepsPayload(jobs[i].remat, page.block_index);
    PoolPiece& piece = keeps ? kept[i] : tiles[i];
    piece = keeps ? PoolPiece(pool_, page.payload.size()) : NewTiles();
    if (piece.get() == nullptr) {
      page.status = PoolExhausted(*pool_);
      continue;
    }
    page.tiles = static_cast<uint16_t*>(tiles[i].get());
    page.kept_payload = static_cast<uint8_t*>(kept[i].get());
    good.push_back(page);
    index_of.push_back(i);
  }

  absl::Status status = RunSinks(jobs, pages);
  status.Update(pages_->Remat(handle, good));
  status.Update(CheckDevice());
  for (size_t i = 0; i < good.size(); ++i) {
    pages[index_of[i]].status = status.ok() ? good[i].status : status;
  }
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (pages[i].status.ok()) {
      results[i] = NewBlock(handle, std::move(tiles[i]), std::move(kept[i]));
    } else {
      results[i] = pages[i].status;
    }
  }
  return results;
}

}  // namespace xcache::cuda
