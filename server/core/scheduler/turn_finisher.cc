// How requests end: answers, failures, commits, and what they leave behind.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"
#include "engine/types.h"
#include "server/core/scheduler/scheduler.h"
#include "server/core/sessions/remat_setting.h"

namespace xcache {

using std::chrono::steady_clock;

// Takes the request out of the running ones, or out of the queue.
std::shared_ptr<ActiveRequest> Scheduler::RemoveRunning(
    const ActiveRequest& request) {
  const auto is_it = [&](const auto& other) { return other.get() == &request; };
  std::shared_ptr<ActiveRequest> removed;
  if (request.state == RequestState::kQueued) {
    const auto it = std::find_if(queue_.begin(), queue_.end(), is_it);
    LeaveQueue(request);
    removed = std::move(*it);
    queue_.erase(it);
  } else {
    const auto it = std::find_if(running_.begin(), running_.end(), is_it);
    removed = std::move(*it);
    running_.erase(it);
    hold_admission_ = false;
    num_running_ = running_.size();
    rates_.AddService(SecondsBetween(request.admitted, steady_clock::now()));
  }
  planner_.LandAll(*removed);
  progress_ = true;
  removed->state = RequestState::kDone;
  removed->EndLoad();
  removed->next_block.Release();
  return removed;
}

void Scheduler::LeaveBehind(ActiveRequest& request) {
  if (request.lease == nullptr || request.options.no_cache ||
      request.live.sequence == nullptr || request.live.num_rows() == 0) {
    request.live.Drop(cache_.Tick());
    return;
  }
  idle_.Put(request.lease->key(), std::move(request.live));
  request.live = LiveSequence();
}

void Scheduler::FinishGeneration(ActiveRequest& request, FinishReason reason) {
  request.FlushText();
  std::vector<TokenId> history;
  if (request.lease != nullptr) {
    absl::StatusOr<std::vector<TokenId>> spoken =
        request.History(*deps_.chat_template, *deps_.tokenizer);
    if (!spoken.ok()) {
      Fail(request, spoken.status());
      return;
    }
    history = *std::move(spoken);
  }
  request.final.finish_reason = reason;
  request.final.timings.decode_us =
      MicrosBetween(request.first_token, steady_clock::now());
  const std::shared_ptr<ActiveRequest> owner = RemoveRunning(request);
  if (request.lease == nullptr) {
    LeaveBehind(request);
    Report(request, absl::OkStatus());
    return;
  }
  SessionRecord next = request.lease->record();
  next.tokens = std::move(history);
  TruncateToHistory(request, next.tokens);
  // An answer that is redone gives way to this one, and its pages with it.
  next.messages.resize(request.kept_messages);
  const size_t kept_tokens =
      next.messages.empty() ? 0 : next.messages.back().token_end;
  next.page_keys.resize(
      std::min(next.page_keys.size(), kept_tokens / kBlockTokens));
  next.messages.insert(next.messages.end(), request.new_messages.begin(),
                       request.new_messages.end());
  next.messages.push_back(
      {.role = static_cast<uint8_t>(Role::kAssistant),
       .content = request.text,
       .token_begin = next.messages.back().token_end,
       .token_end = static_cast<uint32_t>(next.tokens.size())});
  ++next.turn;
  next.numerics_id = engine_.info().numerics_id;
  if (!RematOf(next.settings).has_value()) {
    // Of an older manifest: from now on it is what it was in this turn.
    SetRemat(request.remat, &next.settings);
    CountRemat(request.remat);
  }
  // Keys of what was kept, as far as nothing is missing in between. A turn with
  // no_cache keeps nothing and takes nothing away.
  const auto shared =
      std::mismatch(request.tokens.begin(), request.tokens.end(),
                    next.tokens.begin(), next.tokens.end())
          .first -
      request.tokens.begin();
  const size_t most = std::min(request.live.holds.size(),
                               static_cast<size_t>(shared / kBlockTokens));
  size_t num_stored = 0;
  while (num_stored < most && request.live.holds[num_stored].stored()) {
    ++num_stored;
  }
  if (num_stored > next.page_keys.size()) {
    request.KeyOfBlock(static_cast<int64_t>(num_stored) - 1);
    next.page_keys.assign(
        request.keys.begin(),
        request.keys.begin() + static_cast<ptrdiff_t>(num_stored));
  }
  LeaveBehind(request);
  Commit(owner, std::move(next));
}

void Scheduler::FinishScore(ActiveRequest& request) {
  const std::shared_ptr<ActiveRequest> owner = RemoveRunning(request);
  LeaveBehind(request);
  request.final.finish_reason = FinishReason::kEnd;
  Report(request, absl::OkStatus());
}

void Scheduler::Fail(ActiveRequest& request, const absl::Status& status) {
  const std::shared_ptr<ActiveRequest> owner = RemoveRunning(request);
  // The turn is rolled back: rows of the turns before stay.
  if (request.lease != nullptr)
    TruncateToHistory(request, request.lease->record().tokens);
  LeaveBehind(request);
  request.final.finish_reason = FinishReason::kNone;
  if (absl::IsResourceExhausted(status)) {
    request.final.retry_after_ms = RetryAfterMs();
  }
  Report(request, status);
}

void Scheduler::FailOrCut(ActiveRequest& request, const absl::Status& status) {
  if (!absl::IsResourceExhausted(status) || request.generated() == 0) {
    Fail(request, status);
    return;
  }
  XC_LOG_WARN("answer ended for lack of memory",
              "context_tokens={} generated_tokens={} why={}",
              request.tokens.size(), request.generated(),
              LogValue(std::string(status.message())));
  FinishGeneration(request, FinishReason::kContext);
}

// Rule R4: the final message follows the synced manifest. A committer waits for
// the disk, so that others go on.
void Scheduler::Commit(std::shared_ptr<ActiveRequest> request,
                       SessionRecord next) {
  committers_.Post([this, request = std::move(request),
                    next = std::move(next)] {
    const SteadyTime begin = steady_clock::now();
    absl::Status status = request->lease->Commit(next);
    const SteadyTime end = steady_clock::now();
    request->final.timings.commit_us = MicrosBetween(begin, end);
    request->final.durability =
        status.ok() ? Durability::kLocal : Durability::kMemory;
    request->final.turn = next.turn;
    metrics_.Observe(CoreHistogram::kCommit, SecondsBetween(begin, end));
    metrics_.Add(
        status.ok() ? CoreCounter::kCommits : CoreCounter::kCommitFailures, 1);
    if (KeptInMemory(status)) {
      XC_LOG_WARN("turn not durable", "session={} turn={} why={}",
                  LogValue(next.id), next.turn,
                  LogValue(std::string(status.message())));
      status = absl::OkStatus();
    }
    if (absl::IsAborted(status)) request->final.retry_after_ms = RetryAfterMs();
    status = NotKept(status);
    if (!status.ok()) {
      request->final.finish_reason = FinishReason::kNone;
      request->final.durability = Durability::kNone;
    }
    Report(*request, status.ok() ? request->cut_short : status);
  });
}

// The last word of a request. Its session is free before the caller hears it.
void Scheduler::Report(ActiveRequest& request, const absl::Status& status) {
  if (request.base.cancellation != nullptr)
    request.base.cancellation->SetWaker({});
  request.lease.reset();
  const SteadyTime now = steady_clock::now();
  FinalInfo& final = request.final;
  final.timings.total_us = MicrosBetween(request.submitted, now);
  metrics_.Observe(CoreHistogram::kEndToEnd,
                   SecondsBetween(request.submitted, now));
  if (final.timings.restore_us > 0) {
    metrics_.Observe(CoreHistogram::kRestore,
                     static_cast<double>(final.timings.restore_us) * 1e-6);
  }
  if (final.timings.prefill_us > 0) {
    metrics_.Observe(CoreHistogram::kPrefill,
                     static_cast<double>(final.timings.prefill_us) * 1e-6);
  }
  if (final.timings.decode_us > 0) {
    metrics_.Observe(CoreHistogram::kDecode,
                     static_cast<double>(final.timings.decode_us) * 1e-6);
  }
  metrics_.Add(CoreCounter::kPromptTokens, final.prompt_tokens);
  metrics_.Add(CoreCounter::kGeneratedTokens, final.generated_tokens);
  metrics_.Add(CoreCounter::kPrefilledTokens, final.prefilled_tokens);
  metrics_.Add(CoreCounter::kReusedDevice, final.reused.device);
  metrics_.Add(CoreCounter::kReusedHost, final.reused.host);
  metrics_.Add(CoreCounter::kReusedDisk, final.reused.disk);
  metrics_.Add(CoreCounter::kReusedRemote, final.reused.remote);
  request.sink->OnFinish(status, final);
  request.sink.reset();
  MutexLock lock(mu_);
  --num_open_;
  finished_.SignalAll();
}

}  // namespace xcache
