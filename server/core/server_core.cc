// Requests: checked, rendered and tokenized, then handed to the scheduler.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/sha256.h"
#include "engine/base/status_macros.h"
#include "engine/sampler.h"
#include "server/core/reason.h"
#include "server/core/server_core_impl.h"
#include "server/core/sessions/conversation.h"
#include "server/core/sessions/remat_setting.h"

namespace xcache {
namespace {

// Tokens of a short conversation: a server without room for one is no server.
constexpr int64_t kLeastContext = 512;

int64_t EffectiveContext(const ServerCoreDeps& deps,
                         const ServerCoreOptions& options) {
  const int64_t of_model = deps.engine->info().context_length;
  return options.max_context > 0 ? std::min(options.max_context, of_model)
                                 : of_model;
}

uint64_t RandomSeed() {
  std::random_device random;
  return (uint64_t{random()} << 32) | random();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerCore>> ServerCore::Create(
    const ServerCoreDeps& deps, const ServerCoreOptions& options,
    const ProgressFn& progress) {
  ServerCoreDeps all = deps;
  std::unique_ptr<PlainMetrics> own_metrics;
  if (all.metrics == nullptr) {
    own_metrics = std::make_unique<PlainMetrics>();
    all.metrics = own_metrics.get();
  }
  ServerCoreOptions checked = options;
  checked.max_running = std::max(1, options.max_running);
  // Every running request gets its row in every step.
  checked.step_rows = std::max(options.step_rows, checked.max_running);
  checked.loader_threads = std::max(1, options.loader_threads);
  checked.commit_threads = std::max(1, options.commit_threads);
  checked.max_codecs = std::max(1, options.max_codecs);
  auto core =
      std::make_unique<ServerCoreImpl>(all, checked, std::move(own_metrics));
  XC_RETURN_IF_ERROR(core->Start(progress));
  return core;
}

ServerCoreImpl::ServerCoreImpl(const ServerCoreDeps& deps,
                               const ServerCoreOptions& options,
                               std::unique_ptr<PlainMetrics> own_metrics)
    : own_metrics_(std::move(own_metrics)),
      deps_(deps),
      options_(options),
      max_context_(EffectiveContext(deps, options)),
      metrics_(*deps.metrics),
      codecs_(*deps.memory, options.max_codecs),
      known_answers_(*deps.memory, options.answers_bytes),
      clock_(options.wall_clock_ms, options.monotonic_clock_ms),
      sessions_(deps.store->sessions(), metrics_, clock_,
                [this] { scheduler_.Wake(); }),
      scheduler_(deps, options, max_context_, codecs_),
      grammars_(*deps.tokenizer, *deps.memory, metrics_,
                [this] { scheduler_.Wake(); }) {}

ServerCoreImpl::~ServerCoreImpl() {
  grammars_.Stop();
  scheduler_.Stop();
  {
    MutexLock lock(mu_);
    stop_ = true;
    stop_changed_.SignalAll();
  }
  if (sweeper_.joinable()) sweeper_.join();
}

absl::Status ServerCoreImpl::Start(const ProgressFn& progress) {
  // The scheduler's thread is not there yet, so the engine is this one's.
  Engine& engine = *deps_.engine;
  absl::StatusOr<CodecRef> codec =
      codecs_.Open(engine, options_.default_codec, progress);
  if (absl::IsResourceExhausted(codec.status())) {
    // Opened all the same, to say how much would do.
    XC_ASSIGN_OR_RETURN(const size_t bytes,
                        engine.codec_bytes(options_.default_codec));
    XC_ASSIGN_OR_RETURN(const CodecHandle* const handle,
                        engine.OpenCodec(options_.default_codec, progress));
    XC_RETURN_IF_ERROR(CheckMemoryCap(*handle, static_cast<int64_t>(bytes)));
  }
  XC_ASSIGN_OR_RETURN(default_codec_, std::move(codec));
  XC_RETURN_IF_ERROR(CheckMemoryCap(*default_codec_, 0));
  clock_.Start(deps_.store->sessions().stats().newest_update_ms);
  scheduler_.Start();
  sweeper_ = std::thread([this] { SweepLoop(); });
  return absl::OkStatus();
}

absl::Status ServerCoreImpl::CheckMemoryCap(const CodecHandle& codec,
                                            int64_t codec_bytes) const {
  const int64_t tokens = std::min(kLeastContext, max_context_);
  const int64_t used = deps_.memory->used_bytes() + codec_bytes;
  const int64_t least = used + WorkingSetBytes(*deps_.engine, codec, tokens) +
                        // A page that is sealed, or read.
                        static_cast<int64_t>(codec.page_bytes());
  if (least <= deps_.memory->cap_bytes()) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "the memory cap is too low: expected at least ",
      // The store takes up to a sixteenth of the cap, what clients send up to
      // an eighth: more of a higher one.
      least + least * 3 / 13, " bytes (", used,
      " of the store, the codec and what clients send, the rest for a "
      "conversation of ",
      tokens, " tokens), found ", deps_.memory->cap_bytes()));
}

void ServerCoreImpl::SweepLoop() {
  // A shared store may take its time: no start waits for it.
  sessions_.Sweep();
  while (true) {
    {
      MutexLock lock(mu_);
      if (!stop_) stop_changed_.WaitFor(mu_, options_.sweep_interval);
      if (stop_) return;
    }
    sessions_.Sweep();
    deps_.store->SweepShared(clock_.ExpiryMs());
  }
}

std::shared_ptr<ActiveRequest> ServerCoreImpl::NewRequest(
    RequestKind kind, const RequestBase& base,
    std::shared_ptr<RequestSink> sink) {
  auto active = std::make_shared<ActiveRequest>();
  active->id = ++next_request_;
  active->kind = kind;
  active->base = base;
  active->sink = std::move(sink);
  active->codec_spec = std::string(default_codec_->spec());
  active->remat = options_.default_remat;
  active->submitted = std::chrono::steady_clock::now();
  return active;
}

absl::Status ServerCoreImpl::SetOptions(ActiveRequest& active,
                                        GenerationOptions options) {
  XC_RETURN_IF_ERROR(CheckOptions(options));
  options.sampling.seed =
      options.seed.has_value() ? *options.seed : RandomSeed();
  active.final.seed = options.sampling.seed;
  active.matcher.emplace(options.stop);
  active.speculates = options.speculate.empty() ? options_.speculate
                                                : options.speculate == "ngram";
  active.options = std::move(options);
  if (active.options.grammar.kind != GrammarSpec::Kind::kNone) {
    active.grammar = grammars_.Get(active.base.tenant, active.options.grammar);
    active.options.grammar = GrammarSpec();
  }
  return absl::OkStatus();
}

absl::Status ServerCoreImpl::CheckTemplate() const {
  if (deps_.chat_template != nullptr) return absl::OkStatus();
  return WithReason(
      absl::FailedPreconditionError("the model has no chat template"),
      Reason::kNoChatTemplate);
}

absl::Status ServerCoreImpl::CheckModel(const SessionRecord& record) const {
  if (record.model_fp == model().model_fp) return absl::OkStatus();
  return WithReason(
      absl::FailedPreconditionError(
          absl::StrCat("session '", record.id, "' is of the model ",
                       ToHex(record.model_fp), " with codec '", record.codec,
                       "', this server has the model ", ToHex(model().model_fp),
                       ": MigrateSession tokenizes it anew, and it can go on")),
      Reason::kOtherModel);
}

absl::Status ServerCoreImpl::CheckBytes(size_t num_bytes,
                                        int64_t limit_tokens) const {
  const size_t per_token = deps_.tokenizer->max_token_bytes();
  if (per_token == 0) return absl::OkStatus();
  const auto least = static_cast<int64_t>(num_bytes / per_token);
  if (least <= limit_tokens) return absl::OkStatus();
  return WithReason(absl::InvalidArgumentError(
                        absl::StrCat("the context is too long: ", num_bytes,
                                     " bytes of text are at least ", least,
                                     " tokens, of at most ", limit_tokens)),
                    Reason::kContextTooLong);
}

absl::Status ServerCoreImpl::CheckPrompt(const ActiveRequest& active) const {
  const auto n = static_cast<int64_t>(active.tokens.size());
  if (n == 0) return absl::InvalidArgumentError("the prompt is empty");
  for (const TokenId token : active.tokens) {
    if (token < 0 || token >= model().vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token id ", token, " is not in [0, ", model().vocab_size, ")"));
    }
  }
  // An answer needs room for a token at least.
  const int64_t limit = active.answers() ? max_context_ - 1 : max_context_;
  if (n > limit) {
    return WithReason(
        absl::InvalidArgumentError(absl::StrCat("the context is too long: ", n,
                                                " tokens of at most ", limit)),
        Reason::kContextTooLong);
  }
  return absl::OkStatus();
}

void ServerCoreImpl::SubmitGenerate(GenerateRequest request,
                                    std::shared_ptr<RequestSink> sink) {
  const std::shared_ptr<ActiveRequest> active =
      NewRequest(RequestKind::kGenerate, request, std::move(sink));
  active->tokens = std::move(request.prompt);
  active->prompt_tokens = static_cast<int64_t>(active->tokens.size());
  active->final.prompt_tokens = active->tokens.size();
  active->penalty_history = active->tokens;
  absl::Status status = SetOptions(*active, std::move(request.options));
  if (status.ok()) status = CheckPrompt(*active);
  if (!status.ok()) {
    scheduler_.Refuse(*active, status);
    return;
  }
  scheduler_.Submit(active);
}

void ServerCoreImpl::SubmitScore(ScoreRequest request,
                                 std::shared_ptr<RequestSink> sink) {
  const std::shared_ptr<ActiveRequest> active =
      NewRequest(RequestKind::kScore, request, std::move(sink));
  absl::Status status = CheckScore(request);
  active->tokens = std::move(request.tokens);
  active->prompt_tokens = static_cast<int64_t>(active->tokens.size());
  active->final.prompt_tokens = active->tokens.size();
  active->options.no_cache = request.no_cache;
  active->top_logprobs = request.top_logprobs;
  active->next_score = std::max<int64_t>(request.first, 1);
  if (status.ok()) status = CheckPrompt(*active);
  if (!status.ok()) {
    scheduler_.Refuse(*active, status);
    return;
  }
  scheduler_.Submit(active);
}

void ServerCoreImpl::SubmitEmbed(EmbedRequest request,
                                 std::shared_ptr<RequestSink> sink) {
  const std::shared_ptr<ActiveRequest> active =
      NewRequest(RequestKind::kEmbed, request, std::move(sink));
  active->codec_spec = options_.embedding_codec;
  active->options.no_cache = true;
  active->tokens = std::move(request.tokens);
  active->prompt_tokens = static_cast<int64_t>(active->tokens.size());
  active->final.prompt_tokens = active->tokens.size();
  active->pooling = request.pooling;
  if (absl::Status status = CheckPrompt(*active); !status.ok()) {
    scheduler_.Refuse(*active, status);
    return;
  }
  scheduler_.Submit(active);
}

absl::StatusOr<std::vector<TokenId>> ServerCoreImpl::RenderChat(
    const std::vector<ChatMessage>& messages,
    bool add_generation_prompt) const {
  XC_RETURN_IF_ERROR(CheckTemplate());
  XC_RETURN_IF_ERROR(deps_.chat_template->CheckOrder({}, messages));
  std::vector<TokenId> tokens;
  XC_RETURN_IF_ERROR(
      Render(*deps_.chat_template, messages, 0, &tokens, nullptr));
  if (add_generation_prompt) {
    const std::vector<TokenId> header = deps_.chat_template->AssistantHeader();
    tokens.insert(tokens.end(), header.begin(), header.end());
  }
  return tokens;
}

int ServerCoreImpl::Drain(SteadyTime deadline) {
  const int num_ended = scheduler_.Drain(deadline);
  if (absl::Status status = deps_.store->Flush(); !status.ok()) {
    XC_LOG_WARN("pages not written", "why={}",
                LogValue(std::string(status.message())));
  }
  return num_ended;
}

CoreGauges ServerCoreImpl::Snapshot() const {
  CoreGauges gauges;
  scheduler_.FillGauges(&gauges);
  gauges.sessions =
      static_cast<uint64_t>(deps_.store->sessions().stats().num_sessions);
  gauges.clock_jump_seconds = static_cast<double>(clock_.JumpMs()) / 1000;
  gauges.remat_bytes_per_second =
      gauges.remat_blocks_per_second *
      static_cast<double>(default_codec_->page_bytes());
  return gauges;
}

}  // namespace xcache
