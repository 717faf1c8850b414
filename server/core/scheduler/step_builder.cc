// One engine step: from the requests that may compute to their samples.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/sampler.h"
#include "engine/types.h"
#include "server/core/scheduler/scheduler.h"

namespace xcache {
namespace {

using std::chrono::steady_clock;

// Steps with fewer rows of prompts say little about the rate of prefill.
constexpr int64_t kMinRateRows = 32;

}  // namespace

bool Scheduler::Prepare(Job& job) {
  if (job.next_block.bytes() == 0) {
    std::optional<MemoryReservation> memory =
        Reserve(job, static_cast<int64_t>(engine_.kv_block_bytes()));
    if (!memory.has_value()) return false;
    job.next_block = *std::move(memory);
  }
  if (job.live.sequence != nullptr) return true;
  if (job.live.memory.bytes() == 0) {
    std::optional<MemoryReservation> memory =
        Reserve(job, static_cast<int64_t>(engine_.sequence_bytes(*job.codec)));
    if (!memory.has_value()) return false;
    job.live.memory = *std::move(memory);
  }
  std::vector<KvBlockRef> blocks;
  for (const BlockHold& hold : job.live.holds) blocks.push_back(hold.kv());
  absl::StatusOr<std::unique_ptr<Sequence>> sequence = engine_.NewSequence(
      *job.codec, std::span(job.tokens).first(blocks.size() * kBlockTokens),
      blocks, job.remat);
  if (!sequence.ok()) {
    FailOrCut(job, sequence.status());
    return false;
  }
  job.live.codec = job.codec;
  job.live.sequence = *std::move(sequence);
  job.live.remat = job.remat;
  return true;
}

// Returns whether there was anything to compute.
bool Scheduler::Compute() {
  // First memory for all, the oldest first, which may preempt others; then the
  // step of those that are left.
  for (const std::shared_ptr<Job>& job :
       std::vector<std::shared_ptr<Job>>(running_)) {
    if (job->state == JobState::kReady && job->may_compute) {
      job->may_compute = Prepare(*job);
    }
  }
  std::vector<std::shared_ptr<Job>> ready;
  for (const std::shared_ptr<Job>& job : running_) {
    if (job->state != JobState::kReady || !job->may_compute) continue;
    if (job->solo) {
      ready.assign(1, job);
      break;
    }
    ready.push_back(job);
  }
  std::stable_partition(ready.begin(), ready.end(),
                        [](const auto& job) { return job->decoding(); });
  int64_t budget = std::max(options_.step_rows, 1);
  std::vector<Job*> jobs;
  std::vector<StepItem> items;
  for (const std::shared_ptr<Job>& job : ready) {
    const int64_t rows = job->live.num_rows();
    const int64_t target = job->target_rows();
    const int64_t count =
        std::min({kBlockTokens - rows % kBlockTokens, target - rows, budget});
    if (count == 0) break;
    budget -= count;
    StepItem item;
    item.sequence = job->live.sequence.get();
    item.tokens =
        std::span(job->tokens)
            .subspan(static_cast<size_t>(rows), static_cast<size_t>(count));
    if (job->kind == JobKind::kScore) {
      if (rows + count >= job->next_score) item.logits_mode = LogitsMode::kAll;
    } else if (rows + count == target) {
      item.logits_mode = LogitsMode::kLast;
    }
    jobs.push_back(job.get());
    items.push_back(item);
  }
  if (items.empty()) return false;
  RunStep(jobs, items);
  return true;
}

void Scheduler::RunStep(std::span<Job* const> jobs, std::span<StepItem> items) {
  const SteadyTime begin = steady_clock::now();
  const absl::Status status = engine_.Step(items);
  const SteadyTime end = steady_clock::now();
  if (absl::IsResourceExhausted(status) && MakeRoomOnDevice()) return;
  if (!status.ok()) {
    // One of them is the reason: each goes on alone, and who then fails again
    // ends. Their sequences are made anew.
    XC_LOG_ERROR("step failed", "sequences={} why={}", items.size(),
                 LogValue(std::string(status.message())));
    for (Job* job : jobs) {
      planner_.LandAll(*job);
      job->live.sequence.reset();
      if (items.size() == 1) {
        FailOrCut(*job, absl::IsResourceExhausted(status)
                            ? status
                            : absl::InternalError(status.message()));
      } else {
        job->solo = true;
      }
    }
    return;
  }
  int64_t num_rows = 0;
  int64_t num_prefill = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const auto count = static_cast<int64_t>(items[i].tokens.size());
    num_rows += count;
    // Its row is already there, so it decoded if only that one is.
    const bool decoded = jobs[i]->kind != JobKind::kScore &&
                         jobs[i]->generated() > 0 && count == 1;
    if (decoded) continue;
    num_prefill += count;
    jobs[i]->final.prefilled_tokens += static_cast<uint64_t>(count);
    jobs[i]->final.timings.prefill_us += MicrosBetween(begin, end);
  }
  const double seconds = SecondsBetween(begin, end);
  if (num_prefill >= kMinRateRows) rates_.AddPrefill(num_rows, seconds);
  if (num_prefill == 0) rates_.AddDecode(num_rows, seconds);
  metrics_.Observe(CoreHistogram::kStep, seconds);
  metrics_.Add(CoreCounter::kSteps, 1);
  metrics_.Add(CoreCounter::kStepRows, static_cast<uint64_t>(num_rows));
  for (size_t i = 0; i < items.size(); ++i) {
    jobs[i]->solo = false;
    TakeSealed(*jobs[i]);
    AfterRows(*jobs[i], items[i], end);
  }
}

void Scheduler::TakeSealed(Job& job) {
  for (SealedBlock& sealed : job.live.sequence->TakeSealed()) {
    metrics_.Add(CoreCounter::kBlocksSealed, 1);
    MemoryReservation memory = std::move(job.next_block);
    ShrinkTo(*sealed.kv, &memory);
    if (job.options.no_cache) {
      job.live.holds.push_back(
          cache_.KeepPrivate(std::move(sealed.kv), std::move(memory)));
      continue;
    }
    const PageKey key = job.KeyOfBlock(sealed.block_index);
    const PageKey parent = sealed.block_index == 0
                               ? kRootPageKey
                               : job.KeyOfBlock(sealed.block_index - 1);
    bool stored = deps_.store->pages().Contains(key);
    if (!stored) {
      const absl::Status put =
          deps_.store->PutPage(key, parent, std::move(sealed.page));
      stored = put.ok();
      if (!stored) {
        XC_LOG_DEBUG("page not kept", "key={} why={}", ToHex(key),
                     LogValue(std::string(put.message())));
      }
    }
    job.live.holds.push_back(cache_.Insert(key, sealed.block_index,
                                           std::move(sealed.kv),
                                           std::move(memory), stored));
    planner_.Land(job, key);
  }
}

void Scheduler::AfterRows(Job& job, const StepItem& item, SteadyTime now) {
  if (job.kind == JobKind::kScore) {
    ScoreRows(job, item);
    return;
  }
  if (item.logits.empty()) return;
  const SampledToken token =
      SampleToken(item.logits, job.penalty_history, job.options.sampling,
                  static_cast<int64_t>(job.tokens.size()),
                  std::max(0, job.options.num_logprobs - 1));
  if (job.generated() == 0) {
    job.first_token = now;
    job.final.timings.ttft_us = MicrosBetween(job.submitted, now);
    metrics_.Observe(CoreHistogram::kTtft, SecondsBetween(job.submitted, now));
  } else {
    metrics_.Observe(CoreHistogram::kInterToken,
                     SecondsBetween(job.last_token, now));
  }
  job.last_token = now;
  const FinishReason reason =
      job.AcceptToken(token, *deps_.tokenizer, max_context_);
  if (reason != FinishReason::kNone) FinishGeneration(job, reason);
}

// Row r's logits say how likely the token after it is.
void Scheduler::ScoreRows(Job& job, const StepItem& item) {
  const int64_t end = job.live.num_rows();
  const int64_t begin = end - static_cast<int64_t>(item.tokens.size());
  const auto vocab = static_cast<size_t>(engine_.info().vocab_size);
  std::vector<SampledToken> scored;
  if (!item.logits.empty()) {
    for (; job.next_score <= end; ++job.next_score) {
      const auto row = static_cast<size_t>(job.next_score - 1 - begin);
      const std::span<const float> logits =
          item.logits.subspan(row * vocab, vocab);
      const auto position = static_cast<size_t>(job.next_score);
      SampledToken token;
      if (job.top_logprobs > 0) {
        token = SampleToken(logits, {}, SamplingParams(), job.next_score,
                            job.top_logprobs);
      }
      token.token = job.tokens[position];
      token.logprob = LogProb(logits, token.token);
      scored.push_back(std::move(token));
    }
  }
  if (!scored.empty()) job.sink->OnDelta("", scored);
  if (end >= job.target_rows()) FinishScore(job);
}

}  // namespace xcache
