// The scheduler's loop: what comes in, who is admitted, and the wait for more.
#include "server/core/scheduler/scheduler.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"
#include "engine/base/sha256.h"
#include "engine/base/status_macros.h"
#include "engine/types.h"
#include "server/core/reason.h"

namespace xcache {
namespace {

using std::chrono::steady_clock;

// Working sets go before host pages while they have more than half of the
// memory, and after them otherwise, so that neither starves the other. The
// store's own priority is 100.
constexpr int kReclaimFirst = 0;
constexpr int kReclaimLast = 200;

}  // namespace

Scheduler::Scheduler(const ServerCoreDeps& deps,
                     const ServerCoreOptions& options, int64_t max_context,
                     CodecTable& codecs, CoreMetrics& metrics)
    : deps_(deps),
      options_(options),
      max_context_(max_context),
      codecs_(codecs),
      metrics_(metrics),
      engine_(*deps.engine),
      cache_(metrics),
      idle_(cache_, metrics),
      planner_(cache_, deps.store->pages(), rates_, metrics, options.restore),
      loaders_(options.loader_threads),
      committers_(options.commit_threads) {
  reclaim_first_ = deps_.memory->AddReclaimer(
      "working sets over their half", kReclaimFirst,
      [this](int64_t bytes) { return Reclaim(bytes, /*all=*/false); });
  reclaim_last_ = deps_.memory->AddReclaimer(
      "working sets", kReclaimLast,
      [this](int64_t bytes) { return Reclaim(bytes, /*all=*/true); });
}

void Scheduler::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void Scheduler::Stop() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    draining_ = true;
    end_all_ = true;
    woken_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
  loaders_.Stop();
  committers_.Stop();
}

void Scheduler::Submit(std::shared_ptr<ActiveRequest> request) {
  const auto num_tokens = static_cast<int64_t>(request->tokens.size());
  request->submitted = steady_clock::now();
  if (request->base.cancellation != nullptr) {
    request->base.cancellation->SetWaker([this] { Wake(); });
  }
  absl::Status refusal;
  {
    MutexLock lock(mu_);
    if (draining_) {
      refusal = absl::UnavailableError("the server is shutting down");
    } else if (num_waiting_ >= options_.max_queue_requests ||
               (num_waiting_ > 0 &&
                waiting_tokens_ + num_tokens > options_.max_queue_tokens)) {
      refusal = absl::ResourceExhaustedError(absl::StrCat(
          "the queue is full: ", num_waiting_, " requests of at most ",
          options_.max_queue_requests, ", ", waiting_tokens_,
          " tokens of at most ", options_.max_queue_tokens));
    } else {
      ++num_waiting_;
      waiting_tokens_ += num_tokens;
      ++num_open_;
      submitted_.push_back(std::move(request));
      woken_ = true;
      changed_.Signal();
      return;
    }
  }
  if (absl::IsResourceExhausted(refusal)) {
    metrics_.Add(CoreCounter::kQueueRejections, 1);
  }
  Refuse(*request, refusal);
}

void Scheduler::Refuse(ActiveRequest& request, const absl::Status& status) {
  if (request.base.cancellation != nullptr)
    request.base.cancellation->SetWaker({});
  if (absl::IsResourceExhausted(status)) {
    request.final.retry_after_ms = RetryAfterMs();
  }
  request.lease.reset();
  request.sink->OnFinish(status, request.final);
}

void Scheduler::Wake() {
  MutexLock lock(mu_);
  woken_ = true;
  changed_.Signal();
}

bool Scheduler::Run(std::function<void()> work) {
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
  absl::StatusOr<CodecRef> codec =
      absl::UnavailableError("the server is shutting down");
  Run([&] { codec = OpenCodecHere(spec); });
  return codec;
}

// On the scheduler's thread. Idle sessions keep their codecs open: where that
// is all there is, those used longest ago give way.
absl::StatusOr<CodecRef> Scheduler::OpenCodecHere(std::string_view spec) {
  while (true) {
    absl::StatusOr<CodecRef> codec = codecs_.Open(engine_, spec, {});
    if (!absl::IsResourceExhausted(codec.status())) return codec;
    if (idle_.DropOldest() == 0) return codec;
  }
}

void Scheduler::CountRemat(RematPolicy policy) {
  metrics_.Add(policy == RematPolicy::kStep ? CoreCounter::kSessionsStep
                                            : CoreCounter::kSessionsResume,
               1);
}

void Scheduler::DropSession(const SessionKey& key,
                            std::span<const PageKey> blocks) {
  Run([&] {
    idle_.Drop(key);
    cache_.Drop(blocks);
  });
}

int Scheduler::Drain(SteadyTime deadline) {
  MutexLock lock(mu_);
  draining_ = true;
  while (num_open_ > 0) {
    const SteadyTime now = steady_clock::now();
    if (now >= deadline && !end_all_) {
      end_all_ = true;
      woken_ = true;
      changed_.Signal();
    }
    // Once all are told to end, they do so within a step and a commit.
    const auto rest = end_all_ ? std::chrono::hours(1)
                               : std::min<steady_clock::duration>(
                                     deadline - now, std::chrono::hours(1));
    finished_.WaitFor(mu_, rest);
  }
  return num_ended_;
}

void Scheduler::FillGauges(CoreGauges* gauges) const {
  {
    MutexLock lock(mu_);
    gauges->waiting = static_cast<uint64_t>(num_waiting_);
    gauges->waiting_tokens = static_cast<uint64_t>(waiting_tokens_);
  }
  gauges->running = num_running_;
  gauges->sessions_in_memory = idle_.size();
  gauges->working_set_blocks = cache_.num_blocks();
  gauges->working_set_bytes = static_cast<uint64_t>(
      deps_.memory->used_bytes(MemoryAccount::kWorkingSets) +
      deps_.memory->used_bytes(MemoryAccount::kSequences));
  const Rates::Values rates = rates_.values();
  const auto per_second = [](double seconds) {
    return seconds > 0 ? 1 / seconds : 0;
  };
  gauges->prefill_tokens_per_second = per_second(rates.prefill_token);
  gauges->decode_tokens_per_second = per_second(rates.decode_token);
  gauges->remat_blocks_per_second = per_second(rates.remat_block);
}

// How long the queue takes: as long as those took that left it last, and as the
// first of it has waited already. Where it was always empty, when a place
// becomes free: a running request ends each service time divided by how many
// there are.
int64_t Scheduler::RetryAfterMs() const {
  const Rates::Values rates = rates_.values();
  const auto running = static_cast<double>(std::max<uint64_t>(1, num_running_));
  const SteadyTime oldest = oldest_waiting_;
  const double waited = oldest == SteadyTime()
                            ? 0.0
                            : SecondsBetween(oldest, steady_clock::now());
  const double measured =
      std::max({rates.queue, waited, rates.service / running});
  return measured > 0
             ? static_cast<int64_t>(std::ceil(1000 * std::max(0.01, measured)))
             : 1000;
}

void Scheduler::Loop() {
  thread_id_ = std::this_thread::get_id();
  while (TakeInbox()) {
    progress_ = false;
    EndCancelled();
    DropWantedIdle();
    Admit();
    num_running_ = running_.size();
    const auto waiting =
        std::find_if(queue_.begin(), queue_.end(),
                     [](const auto& request) { return !request->preempted; });
    oldest_waiting_ =
        waiting == queue_.end() ? SteadyTime() : (*waiting)->submitted;
    bool worked = PlanAndRestore();
    worked = Compute() || worked;
    if (!worked && !progress_) WaitForWork();
  }
  idle_.DropAll();
}

// False: stopped, and nothing is left to do.
bool Scheduler::TakeInbox() {
  std::vector<std::shared_ptr<ActiveRequest>> submitted;
  std::vector<LoadResult> loads;
  std::vector<std::function<void()>> tasks;
  bool stop = false;
  {
    MutexLock lock(mu_);
    woken_ = false;
    submitted.swap(submitted_);
    loads.swap(loads_);
    tasks.swap(tasks_);
    stop = stop_;
  }
  for (std::shared_ptr<ActiveRequest>& request : submitted)
    queue_.push_back(std::move(request));
  for (LoadResult& load : loads) TakeLoad(std::move(load));
  for (const auto& task : tasks) task();
  return !stop || !queue_.empty() || !running_.empty() || !submitted.empty();
}

void Scheduler::WaitForWork() {
  SteadyTime until = steady_clock::now() + std::chrono::seconds(1);
  bool stalled = false;
  for (const auto& request : queue_)
    until = std::min(until, request->base.deadline);
  for (const auto& request : running_) {
    until = std::min(until, request->base.deadline);
    stalled = stalled || request->stalled_since != SteadyTime();
  }
  if (stalled) {
    until = std::min(until, steady_clock::now() + std::chrono::milliseconds(5));
  }
  MutexLock lock(mu_);
  while (!woken_ && loads_.empty() && !stop_) {
    const auto rest = until - steady_clock::now();
    if (rest <= steady_clock::duration::zero()) return;
    changed_.WaitFor(mu_, rest);
  }
}

absl::Status Scheduler::WhyToEnd(const ActiveRequest& request,
                                 SteadyTime now) const {
  if (end_all_) return absl::UnavailableError("the server is shutting down");
  if (request.base.cancellation != nullptr &&
      request.base.cancellation->cancelled()) {
    return absl::CancelledError("cancelled by the caller");
  }
  if (request.lease != nullptr && request.lease->deleted()) {
    return absl::CancelledError("the session was deleted");
  }
  if (now >= request.base.deadline) {
    return absl::DeadlineExceededError("the deadline has passed");
  }
  return absl::OkStatus();
}

void Scheduler::EndCancelled() {
  const SteadyTime now = steady_clock::now();
  std::vector<std::shared_ptr<ActiveRequest>> requests(queue_.begin(),
                                                       queue_.end());
  requests.insert(requests.end(), running_.begin(), running_.end());
  for (const std::shared_ptr<ActiveRequest>& request : requests) {
    const absl::Status why = WhyToEnd(*request, now);
    if (why.ok()) continue;
    if (end_all_) ++num_ended_;
    const bool kept = request->keep_partial && request->generated() > 0 &&
                      !request->lease->deleted();
    if (!kept) {
      Fail(*request, why);
      continue;
    }
    // Of the server's end its caller hears by the finish reason.
    if (!end_all_) request->cut_short = why;
    FinishGeneration(*request, FinishReason::kCancelled);
  }
}

void Scheduler::LeaveQueue(const ActiveRequest& request) {
  if (request.preempted) return;  // was counted out when it was admitted
  MutexLock lock(mu_);
  --num_waiting_;
  waiting_tokens_ -= static_cast<int64_t>(request.tokens.size());
}

void Scheduler::Admit() {
  while (!queue_.empty() &&
         static_cast<int>(running_.size()) < options_.max_running &&
         (!hold_admission_ || running_.empty())) {
    const std::shared_ptr<ActiveRequest> request = queue_.front();
    if (absl::Status status = AdmitRequest(*request); !status.ok()) {
      FailOrCut(*request, status);
      continue;
    }
    queue_.pop_front();
    const auto place = std::find_if(
        running_.begin(), running_.end(),
        [&](const auto& other) { return other->order > request->order; });
    running_.insert(place, request);
  }
}

absl::Status Scheduler::AdmitRequest(ActiveRequest& request) {
  if (request.codec == nullptr) {
    absl::StatusOr<CodecRef> codec = OpenCodecHere(request.codec_spec);
    if (absl::IsResourceExhausted(codec.status())) return codec.status();
    if (request.lease != nullptr) {
      const SessionRecord& record = request.lease->record();
      if (!codec.ok() || (*codec)->cache_fp() != record.cache_fp) {
        return absl::FailedPreconditionError(absl::StrCat(
            "session '", record.id, "' is of codec '", record.codec,
            "' with fingerprint ", ToHex(record.cache_fp), "; here it is ",
            codec.ok() ? ToHex((*codec)->cache_fp())
                       : std::string(codec.status().message()),
            ": MigrateSession gives it a codec of this server"));
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
  if (needed > deps_.memory->cap_bytes()) {
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
  LeaveQueue(request);
  if (!request.preempted) {
    request.admitted = steady_clock::now();
    request.order = ++next_order_;
    request.final.timings.queue_us =
        MicrosBetween(request.submitted, request.admitted);
    const double queued = SecondsBetween(request.submitted, request.admitted);
    rates_.AddQueue(queued);
    metrics_.Observe(CoreHistogram::kQueue, queued);
    if (request.lease != nullptr && !request.options.no_cache) {
      if (std::optional<LiveSequence> live = idle_.Take(request.lease->key())) {
        request.live = *std::move(live);
        // Another policy: of a first turn that failed, under another default.
        if (&request.live.sequence->codec() != request.codec.get() ||
            request.live.remat != request.remat) {
          request.live.Drop(cache_.Tick());
        }
        const auto rows =
            std::span(request.tokens).first(request.tokens.size() - 1);
        TruncateToHistory(request, rows);
        request.final.reused.device +=
            static_cast<uint64_t>(request.live.num_rows());
      }
    }
  }
  request.state = RequestState::kReady;
  return absl::OkStatus();
}

void Scheduler::TruncateToHistory(ActiveRequest& request,
                                  std::span<const TokenId> history) {
  if (request.live.sequence == nullptr) return;
  const std::span<const TokenId> rows = request.live.sequence->tokens();
  const auto common =
      std::mismatch(rows.begin(), rows.end(), history.begin(), history.end());
  request.live.Truncate(common.first - rows.begin(), cache_.Tick());
}

}  // namespace xcache
