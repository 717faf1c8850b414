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

// Takes the job out of the running ones, or out of the queue.
std::shared_ptr<Job> Scheduler::RemoveRunning(const Job& job) {
  const auto is_job = [&](const auto& other) { return other.get() == &job; };
  std::shared_ptr<Job> removed;
  if (job.state == JobState::kQueued) {
    const auto it = std::find_if(queue_.begin(), queue_.end(), is_job);
    LeaveQueue(job);
    removed = std::move(*it);
    queue_.erase(it);
  } else {
    const auto it = std::find_if(running_.begin(), running_.end(), is_job);
    removed = std::move(*it);
    running_.erase(it);
    hold_admission_ = false;
    num_running_ = running_.size();
    rates_.AddService(SecondsBetween(job.admitted, steady_clock::now()));
  }
  planner_.LandAll(*removed);
  progress_ = true;
  removed->state = JobState::kDone;
  removed->EndLoad();
  removed->next_block.Release();
  return removed;
}

void Scheduler::LeaveBehind(Job& job) {
  if (job.lease == nullptr || job.options.no_cache ||
      job.live.sequence == nullptr || job.live.num_rows() == 0) {
    job.live.Drop(cache_.Tick());
    return;
  }
  idle_.Put(job.lease->key(), std::move(job.live));
  job.live = LiveSequence();
}

void Scheduler::FinishGeneration(Job& job, FinishReason reason) {
  job.FlushText();
  std::vector<TokenId> history;
  if (job.lease != nullptr) {
    absl::StatusOr<std::vector<TokenId>> spoken =
        job.History(*deps_.chat_template, *deps_.tokenizer);
    if (!spoken.ok()) {
      Fail(job, spoken.status());
      return;
    }
    history = *std::move(spoken);
  }
  job.final.finish_reason = reason;
  job.final.timings.decode_us =
      MicrosBetween(job.first_token, steady_clock::now());
  const std::shared_ptr<Job> owner = RemoveRunning(job);
  if (job.lease == nullptr) {
    LeaveBehind(job);
    Report(job, absl::OkStatus());
    return;
  }
  SessionRecord next = job.lease->record();
  next.tokens = std::move(history);
  TruncateToHistory(job, next.tokens);
  // An answer that is redone gives way to this one, and its pages with it.
  next.messages.resize(job.kept_messages);
  const size_t kept_tokens =
      next.messages.empty() ? 0 : next.messages.back().token_end;
  next.page_keys.resize(
      std::min(next.page_keys.size(), kept_tokens / kBlockTokens));
  next.messages.insert(next.messages.end(), job.new_messages.begin(),
                       job.new_messages.end());
  next.messages.push_back(
      {.role = static_cast<uint8_t>(Role::kAssistant),
       .content = job.text,
       .token_begin = next.messages.back().token_end,
       .token_end = static_cast<uint32_t>(next.tokens.size())});
  ++next.turn;
  next.numerics_id = engine_.info().numerics_id;
  if (!RematOf(next.settings).has_value()) {
    // Of an older manifest: from now on it is what it was in this turn.
    SetRemat(job.remat, &next.settings);
    CountRemat(job.remat);
  }
  // Keys of what was kept, as far as nothing is missing in between. A turn with
  // no_cache keeps nothing and takes nothing away.
  const auto shared = std::mismatch(job.tokens.begin(), job.tokens.end(),
                                    next.tokens.begin(), next.tokens.end())
                          .first -
                      job.tokens.begin();
  const size_t most = std::min(job.live.holds.size(),
                               static_cast<size_t>(shared / kBlockTokens));
  size_t num_stored = 0;
  while (num_stored < most && job.live.holds[num_stored].stored()) {
    ++num_stored;
  }
  if (num_stored > next.page_keys.size()) {
    job.KeyOfBlock(static_cast<int64_t>(num_stored) - 1);
    next.page_keys.assign(
        job.keys.begin(),
        job.keys.begin() + static_cast<ptrdiff_t>(num_stored));
  }
  LeaveBehind(job);
  Commit(owner, std::move(next));
}

void Scheduler::FinishScore(Job& job) {
  const std::shared_ptr<Job> owner = RemoveRunning(job);
  LeaveBehind(job);
  job.final.finish_reason = FinishReason::kEnd;
  Report(job, absl::OkStatus());
}

void Scheduler::Fail(Job& job, const absl::Status& status) {
  const std::shared_ptr<Job> owner = RemoveRunning(job);
  // The turn is rolled back: rows of the turns before stay.
  if (job.lease != nullptr) TruncateToHistory(job, job.lease->record().tokens);
  LeaveBehind(job);
  job.final.finish_reason = FinishReason::kNone;
  if (absl::IsResourceExhausted(status)) {
    job.final.retry_after_ms = RetryAfterMs();
  }
  Report(job, status);
}

void Scheduler::FailOrCut(Job& job, const absl::Status& status) {
  if (!absl::IsResourceExhausted(status) || job.generated() == 0) {
    Fail(job, status);
    return;
  }
  XC_LOG_WARN("answer ended for lack of memory",
              "context_tokens={} generated_tokens={} why={}", job.tokens.size(),
              job.generated(), LogValue(std::string(status.message())));
  FinishGeneration(job, FinishReason::kContext);
}

// Rule R4: the final message follows the synced manifest. A committer waits for
// the disk, so that others go on.
void Scheduler::Commit(std::shared_ptr<Job> job, SessionRecord next) {
  committers_.Post([this, job = std::move(job), next = std::move(next)] {
    const SteadyTime begin = steady_clock::now();
    absl::Status status = job->lease->Commit(next);
    const SteadyTime end = steady_clock::now();
    job->final.timings.commit_us = MicrosBetween(begin, end);
    job->final.durability =
        status.ok() ? Durability::kLocal : Durability::kMemory;
    job->final.turn = next.turn;
    metrics_.Observe(CoreHistogram::kCommit, SecondsBetween(begin, end));
    metrics_.Add(
        status.ok() ? CoreCounter::kCommits : CoreCounter::kCommitFailures, 1);
    if (KeptInMemory(status)) {
      XC_LOG_WARN("turn not durable", "session={} turn={} why={}",
                  LogValue(next.id), next.turn,
                  LogValue(std::string(status.message())));
      status = absl::OkStatus();
    }
    if (absl::IsAborted(status)) job->final.retry_after_ms = RetryAfterMs();
    status = NotKept(status);
    if (!status.ok()) {
      job->final.finish_reason = FinishReason::kNone;
      job->final.durability = Durability::kNone;
    }
    Report(*job, status.ok() ? job->cut_short : status);
  });
}

// The last word of a request. Its session is free before the caller hears it.
void Scheduler::Report(Job& job, const absl::Status& status) {
  if (job.base.cancellation != nullptr) job.base.cancellation->SetWaker({});
  job.lease.reset();
  const SteadyTime now = steady_clock::now();
  FinalInfo& final = job.final;
  final.timings.total_us = MicrosBetween(job.submitted, now);
  metrics_.Observe(CoreHistogram::kEndToEnd,
                   SecondsBetween(job.submitted, now));
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
  job.sink->OnFinish(status, final);
  job.sink.reset();
  MutexLock lock(mu_);
  --num_open_;
  finished_.SignalAll();
}

}  // namespace xcache
