// One turn of the loop: planning at block boundaries, restoring pages in
// slices, and one engine step with its samples.
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
#include "server/core/scheduler.h"

namespace xcache {
namespace {

using std::chrono::steady_clock;

// Rematerialization between two steps while others compute: short beside a step
// with a prompt's chunk in it.
constexpr double kRestoreSliceSeconds = 0.010;
constexpr int64_t kMinSlice = 2;
constexpr int64_t kMaxSlice = 16;

// Steps with fewer rows of prompts say little about the rate of prefill.
constexpr int64_t kMinRateRows = 32;

}  // namespace

// Returns whether pages were rematerialized.
bool Scheduler::PlanAndRestore() {
  const std::vector<std::shared_ptr<Job>> jobs = running_;
  Job* to_restore = nullptr;
  for (const std::shared_ptr<Job>& job : jobs) {
    job->may_compute = false;
    if (job->state == JobState::kReady) {
      PrefixPlanner::Plan plan = planner_.Next(*job);
      job->may_compute = plan.action == PrefixPlanner::Action::kCompute;
      const bool waits = plan.action == PrefixPlanner::Action::kWait;
      if (waits && !job->waiting) {
        metrics_.Add(CoreCounter::kSingleFlightWaits, 1);
      }
      job->waiting = waits;
      if (plan.action == PrefixPlanner::Action::kLoad) {
        StartLoad(*job, std::move(plan.load));
      }
    }
    if (job->state == JobState::kRestoring && to_restore == nullptr) {
      to_restore = job.get();
    }
  }
  return to_restore != nullptr && RestoreSlice(*to_restore);
}

void Scheduler::StartLoad(Job& job, std::vector<PageKey> keys) {
  job.state = JobState::kLoading;
  job.load_id = ++next_load_;
  job.restore_began = steady_clock::now();
  loaders_.Post(
      [this, job_id = job.id, load_id = job.load_id, keys = std::move(keys)] {
        LoadResult result;
    result.job_id = job_id;
    result.load_id = load_id;
        const SteadyTime begin = steady_clock::now();
        for (const PageKey& key : keys) {
          absl::StatusOr<PageHit> hit = deps_.store->pages().Get(key);
          if (!hit.ok()) {
            result.failed_key = key;
            result.status = hit.status();
            break;
          }
          result.pages.push_back({.key = key, .hit = *std::move(hit)});
        }
        const double seconds = SecondsBetween(begin, steady_clock::now());
        rates_.AddLoad(static_cast<int64_t>(result.pages.size()), seconds);
        metrics_.Observe(CoreHistogram::kPageLoad, seconds);
        MutexLock lock(mu_);
        loads_.push_back(std::move(result));
        changed_.Signal();
      });
}

void Scheduler::TakeLoad(LoadResult result) {
  const auto it =
      std::find_if(running_.begin(), running_.end(), [&](const auto& job) {
        return job->id == result.job_id && job->load_id == result.load_id &&
               job->state == JobState::kLoading;
      });
  if (it == running_.end()) return;  // ended or preempted meanwhile
  Job& job = **it;
  if (!result.status.ok()) {
    const auto failed_block =
        static_cast<int64_t>(job.live.holds.size() + result.pages.size());
    const bool no_memory = absl::IsResourceExhausted(result.status);
    if (absl::IsNotFound(result.status)) {
      metrics_.Add(CoreCounter::kPagesMissing, 1);
    } else if (absl::IsDataLoss(result.status)) {
      metrics_.Add(CoreCounter::kPagesCorrupt, 1);
    }
    // Rule R3: what cannot be read is computed. Where only memory was short,
    // idle sequences go and it is tried once more.
    if (no_memory && !job.load_retried && idle_.size() > 0) {
      job.load_retried = true;
      Reclaim(static_cast<int64_t>(job.codec->page_bytes()) * kMaxSlice,
              /*all=*/true);
    } else {
      job.no_restore_before =
          no_memory ? job.reusable_blocks() : failed_block + 1;
    }
    planner_.LandAll(job);
    for (const LoadedPage& page : result.pages) planner_.Expect(job, page.key);
  }
  job.loaded.assign(std::make_move_iterator(result.pages.begin()),
                    std::make_move_iterator(result.pages.end()));
  job.state = job.loaded.empty() ? JobState::kReady : JobState::kRestoring;
  if (job.loaded.empty()) {
    job.final.timings.restore_us +=
        MicrosBetween(job.restore_began, steady_clock::now());
  }
}

bool Scheduler::RestoreSlice(Job& job) {
  const bool others_compute =
      std::any_of(running_.begin(), running_.end(),
                  [](const auto& other) { return other->may_compute; });
  int64_t slice = kMaxSlice;
  if (const double block = rates_.values().remat_block;
      others_compute && block > 0) {
    slice = std::clamp(static_cast<int64_t>(kRestoreSliceSeconds / block),
                       kMinSlice, kMaxSlice);
  }
  slice = std::min(slice, static_cast<int64_t>(job.loaded.size()));
  job.live.sequence.reset();  // made anew from its blocks
  std::vector<MemoryReservation> memory;
  std::vector<RematJob> remat;
  const auto first_block = static_cast<int64_t>(job.live.holds.size());
  while (static_cast<int64_t>(remat.size()) < slice) {
    std::optional<MemoryReservation> block =
        Reserve(job, static_cast<int64_t>(engine_.kv_block_bytes()));
    if (!block.has_value()) return false;
    const int64_t index = first_block + static_cast<int64_t>(remat.size());
    memory.push_back(*std::move(block));
    remat.push_back({.block_index = index,
                     .page = job.loaded[remat.size()].hit.page->bytes(),
                     .tokens = job.TokensOfBlock(index)});
  }
  const SteadyTime begin = steady_clock::now();
  std::vector<absl::StatusOr<KvBlockRef>> blocks =
      engine_.Remat(*job.codec, remat);
  const SteadyTime end = steady_clock::now();
  rates_.AddRemat(slice, SecondsBetween(begin, end));
  metrics_.Observe(CoreHistogram::kRematBlock,
                   SecondsBetween(begin, end) / static_cast<double>(slice));
  job.final.timings.remat_us += MicrosBetween(begin, end);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const LoadedPage page = std::move(job.loaded.front());
    if (!blocks[i].ok()) {
      XC_LOG_WARN("page dropped", "key={} why={}", ToHex(page.key),
                  LogValue(std::string(blocks[i].status().message())));
      metrics_.Add(CoreCounter::kPagesCorrupt, 1);
      deps_.store->pages().Erase(page.key).IgnoreError();
      job.loaded.clear();
      planner_.LandAll(job);
      job.no_restore_before = static_cast<int64_t>(job.live.holds.size()) + 1;
      break;
    }
    job.loaded.pop_front();
    job.live.holds.push_back(cache_.Insert(
        page.key, static_cast<int64_t>(job.live.holds.size()),
        *std::move(blocks[i]), std::move(memory[i]), /*stored=*/true));
    planner_.Land(job, page.key);
    metrics_.Add(CoreCounter::kBlocksRematerialized, 1);
    if (job.preempted) continue;
    (page.hit.tier == PageTier::kHost ? job.final.reused.host
                                      : job.final.reused.disk) += kBlockTokens;
  }
  if (job.loaded.empty()) {
    job.state = JobState::kReady;
    job.final.timings.restore_us +=
        MicrosBetween(job.restore_began, steady_clock::now());
  }
  return true;
}

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
      blocks);
  if (!sequence.ok()) {
    Fail(job, sequence.status());
    return false;
  }
  job.live.sequence = *std::move(sequence);
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
    item.tokens = std::span(job->tokens)
                      .subspan(static_cast<size_t>(rows),
                               static_cast<size_t>(count));
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
  if (!status.ok()) {
    // One of them is the reason: each goes on alone, and who then fails again
    // ends. Their sequences are made anew.
    XC_LOG_ERROR("step failed", "sequences={} why={}", items.size(),
                 LogValue(std::string(status.message())));
    for (Job* job : jobs) {
      planner_.LandAll(*job);
      job->live.sequence.reset();
      if (items.size() == 1) {
        Fail(*job, absl::InternalError(status.message()));
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
    if (job.no_cache) {
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
      SampleToken(item.logits, job.tokens, job.sampling,
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
