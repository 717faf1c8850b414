#include "server/core/scheduler/scheduler.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cachestore/cache_store.h"
#include "engine/base/log.h"
#include "engine/base/memory_budget.h"
#include "engine/base/sha256.h"
#include "engine/base/status_macros.h"
#include "engine/types.h"
#include "server/core/reason.h"
#include "server/core/tenants/take.h"

namespace xcache {

using std::chrono::steady_clock;

Scheduler::Scheduler(const ServerCoreDeps& deps,
                     const ServerCoreOptions& options, int64_t max_context,
                     CodecTable& codecs)
    : deps_(deps),
      engine_(*deps.engine),
      codecs_(codecs),
      max_context_(max_context),
      shares_(deps.tenants),
      queue_(options, *deps.metrics, rates_, deps.tenants),
      working_sets_(deps, queue_, [this] { Wake(); }),
      finisher_(deps, options.commit_threads, queue_, working_sets_),
      restorer_(deps, options, queue_, working_sets_, finisher_, rates_,
                shares_, [this] { Wake(); }),
      step_builder_(deps, options, max_context, queue_, working_sets_,
                    finisher_, rates_, shares_) {}

void Scheduler::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void Scheduler::Stop() {
  queue_.Close();
  {
    MutexLock lock(mu_);
    stop_ = true;
    end_all_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
  restorer_.Stop();
  finisher_.Stop();
}

void Scheduler::Submit(const std::shared_ptr<ActiveRequest>& request) {
  if (request->base.cancellation != nullptr) {
    request->base.cancellation->SetWaker([this] { Wake(); });
  }
  absl::Status status = TakeLimits(*request);
  if (status.ok()) {
    // As soon as may be: they come while it waits for its turn.
    if (const CodecRef codec = codecs_.Find(request->codec_spec)) {
      restorer_.remote().Ask(*request, codec->cache_fp());
    }
    status = queue_.Enter(request);
  }
  if (!status.ok()) {
    Refuse(*request, status);
    return;
  }
  Wake();
}

absl::Status Scheduler::TakeLimits(ActiveRequest& request) {
  if (deps_.tenants == nullptr) return absl::OkStatus();
  const std::string& tenant = request.base.tenant;
  const int64_t most = request.max_tokens(max_context_);
  XC_ASSIGN_OR_RETURN(
      request.minute_tokens,
      Take(deps_.tenants, tenant, TenantLimit::kTokensPerMinute,
           request.asked_tokens() + most - request.prompt_tokens));
  if (request.lease == nullptr || request.options.no_cache) {
    return absl::OkStatus();
  }
  const auto num_pages =
      static_cast<int64_t>(request.lease->record().page_keys.size());
  const auto page_bytes =
      static_cast<int64_t>(codecs_.PageBytes(request.codec_spec));
  XC_ASSIGN_OR_RETURN(
      request.page_bytes,
      Take(deps_.tenants, tenant, TenantLimit::kPageBytes,
           std::max<int64_t>(0, most / kBlockTokens - num_pages) * page_bytes,
           deps_.store->sessions().UseOf(tenant).page_bytes));
  return absl::OkStatus();
}

void Scheduler::Wake() {
  MutexLock lock(mu_);
  woken_ = true;
  changed_.Signal();
}

bool Scheduler::RunThere(std::function<void()> work) {
  struct Done {
    Mutex mu;
    CondVar changed;
    bool done XC_GUARDED_BY(mu) = false;
  };
  const auto done = std::make_shared<Done>();
  {
    MutexLock lock(mu_);
    if (stop_) return false;
    tasks_.push_back([done, work = std::move(work)] {
      work();
      MutexLock done_lock(done->mu);
      done->done = true;
      done->changed.SignalAll();
    });
    woken_ = true;
    changed_.Signal();
  }
  MutexLock lock(done->mu);
  while (!done->done) done->changed.Wait(done->mu);
  return true;
}

absl::StatusOr<CodecRef> Scheduler::OpenCodec(std::string_view spec) {
  if (CodecRef codec = codecs_.Find(spec)) return codec;
  XC_RETURN_IF_ERROR(engine_.PrepareCodec(spec, {}));
  absl::StatusOr<CodecRef> codec = ShuttingDown();
  RunThere([&] { codec = OpenCodecHere(spec); });
  return codec;
}

// On the scheduler's thread. Idle sessions keep their codecs open: where that
// is all there is, those used longest ago give way.
absl::StatusOr<CodecRef> Scheduler::OpenCodecHere(std::string_view spec) {
  while (true) {
    absl::StatusOr<CodecRef> codec = codecs_.Open(engine_, spec, {});
    if (!absl::IsResourceExhausted(codec.status())) return codec;
    if (!working_sets_.DropOldestIdle()) return codec;
  }
}

void Scheduler::DropSession(const SessionKey& key,
                            std::span<const PageKey> blocks) {
  RunThere([&] { working_sets_.Drop(key, blocks); });
}

int Scheduler::Drain(SteadyTime deadline) {
  queue_.Close();
  if (!queue_.WaitUntilEmpty(deadline)) {
    end_all_ = true;
    Wake();
    // Once all are told to end, they do so within a step and a commit.
    queue_.WaitUntilEmpty(SteadyTime::max());
  }
  return num_ended_;
}

void Scheduler::FillGauges(CoreGauges* gauges) const {
  queue_.FillGauges(gauges);
  working_sets_.FillGauges(gauges);
  const Rates::Values rates = rates_.values();
  const auto per_second = [](double seconds) {
    return seconds > 0 ? 1 / seconds : 0;
  };
  gauges->prefill_tokens_per_second = per_second(rates.prefill_token);
  gauges->decode_tokens_per_second = per_second(rates.decode_token);
  gauges->remat_blocks_per_second = per_second(rates.remat_block);
}

void Scheduler::Loop() {
  working_sets_.BindThread();
  while (TakeInbox()) {
    const uint64_t changes = queue_.changes();
    EndCancelled();
    working_sets_.DropWanted();
    Admit();
    const bool restored = restorer_.PlanAndRestore();
    const bool computed = step_builder_.Compute();
    if (!restored && !computed && queue_.changes() == changes) WaitForWork();
  }
  working_sets_.DropAllIdle();
}

bool Scheduler::TakeInbox() {
  std::vector<std::function<void()>> tasks;
  bool stop = false;
  {
    MutexLock lock(mu_);
    woken_ = false;
    tasks.swap(tasks_);
    stop = stop_;
  }
  queue_.TakeEntered();
  restorer_.TakeLoaded();
  for (const auto& task : tasks) task();
  return !stop || !queue_.empty();
}

void Scheduler::WaitForWork() {
  SteadyTime until = steady_clock::now() + std::chrono::seconds(1);
  for (const auto& request : queue_.waiting()) {
    until = std::min(until, request->base.deadline);
  }
  for (const auto& request : queue_.running()) {
    until = std::min(until, request->base.deadline);
    if (request->remote.began != SteadyTime()) {
      until = std::min(until, request->remote.until);
    }
    if (request->stalled_since == SteadyTime()) continue;
    until = std::min(until, steady_clock::now() + std::chrono::milliseconds(5));
  }
  MutexLock lock(mu_);
  while (!woken_ && !stop_) {
    const auto rest = until - steady_clock::now();
    if (rest <= steady_clock::duration::zero()) return;
    changed_.WaitFor(mu_, rest);
  }
}

absl::Status Scheduler::WhyToEnd(const ActiveRequest& request,
                                 SteadyTime now) const {
  if (end_all_) return ShuttingDown();
  if (request.base.cancellation != nullptr &&
      request.base.cancellation->cancelled()) {
    return absl::CancelledError("cancelled by the caller");
  }
  if (request.lease != nullptr && request.lease->deleted()) {
    return absl::CancelledError("the session was deleted");
  }
  if (request.lease != nullptr && request.lease->check() != nullptr) {
    const auto checked = request.lease->check()->result();
    if (checked.has_value() && !checked->ok()) return *checked;
  }
  if (request.grammar != nullptr && request.grammar_matcher == nullptr) {
    if (absl::Status status = request.grammar->status(); !status.ok()) {
      return status;
    }
  }
  if (now >= request.base.deadline) {
    return absl::DeadlineExceededError("the deadline has passed");
  }
  return absl::OkStatus();
}

void Scheduler::EndCancelled() {
  const SteadyTime now = steady_clock::now();
  std::vector<RunQueue::RequestPtr> requests(queue_.waiting().begin(),
                                             queue_.waiting().end());
  requests.insert(requests.end(), queue_.running().begin(),
                  queue_.running().end());
  for (const RunQueue::RequestPtr& request : requests) {
    const absl::Status why = WhyToEnd(*request, now);
    if (why.ok()) continue;
    if (end_all_) ++num_ended_;
    const bool kept = request->keep_partial && request->generated() > 0 &&
                      !request->lease->deleted();
    if (!kept) {
      finisher_.Fail(*request, why);
      continue;
    }
    // Of the server's end its caller hears by the finish reason.
    if (!end_all_) request->cut_short = why;
    finisher_.Finish(*request, FinishReason::kCancelled);
  }
}

void Scheduler::Admit() {
  while (ActiveRequest* const request = queue_.Next()) {
    if (absl::Status status = CheckAdmission(*request); !status.ok()) {
      finisher_.FailOrCut(*request, status);
      continue;
    }
    if (request->grammar != nullptr && request->grammar_matcher == nullptr) {
      request->grammar_matcher =
          std::make_unique<GrammarMatcher>(request->grammar->grammar());
    }
    restorer_.remote().Ask(*request, request->codec->cache_fp());
    queue_.Admit();
    working_sets_.TakeIdle(*request);
  }
}

absl::Status Scheduler::CheckAdmission(ActiveRequest& request) {
  if (request.codec == nullptr) {
    absl::StatusOr<CodecRef> codec = OpenCodecHere(request.codec_spec);
    if (absl::IsResourceExhausted(codec.status())) return codec.status();
    if (request.lease != nullptr) {
      const SessionRecord& record = request.lease->record();
      if (!codec.ok() || (*codec)->cache_fp() != record.cache_fp) {
        return WithReason(
            absl::FailedPreconditionError(absl::StrCat(
                "session '", record.id, "' is of codec '", record.codec,
                "' with fingerprint ", ToHex(record.cache_fp), "; here it is ",
                codec.ok() ? ToHex((*codec)->cache_fp())
                           : std::string(codec.status().message()),
                ": MigrateSession gives it a codec of this server")),
            Reason::kOtherModel);
      }
      if (record.numerics_id != engine_.info().numerics_id) {
        XC_LOG_INFO(
            "session of other numerics: its pages are used all the same",
            "id={} was={} is={}", LogValue(record.id),
            LogValue(record.numerics_id), LogValue(engine_.info().numerics_id));
      }
    }
    XC_RETURN_IF_ERROR(codec.status());
    request.codec = *codec;
  }
  const int64_t needed =
      WorkingSetBytes(engine_, *request.codec, request.target_rows());
  if (needed <= deps_.memory->cap_bytes()) return absl::OkStatus();
  const std::string why = absl::StrCat(
      "the context is too long for the server's memory: ",
      request.tokens.size(), " tokens need ", needed,
      " bytes of working set, of at most ", deps_.memory->cap_bytes());
  // Trying again does not help a prompt. An answer ends there.
  return request.generated() == 0
             ? WithReason(absl::InvalidArgumentError(why),
                          Reason::kContextTooLong)
             : WithReason(absl::ResourceExhaustedError(why),
                          Reason::kOutOfMemory);
}

}  // namespace xcache
