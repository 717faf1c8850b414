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

bool Scheduler::Prepare(ActiveRequest& request) {
  if (request.next_block.bytes() == 0) {
    std::optional<MemoryReservation> memory =
        Reserve(request, static_cast<int64_t>(engine_.kv_block_bytes()));
    if (!memory.has_value()) return false;
    request.next_block = *std::move(memory);
  }
  if (request.live.sequence != nullptr) return true;
  if (request.live.memory.bytes() == 0) {
    std::optional<MemoryReservation> memory = Reserve(
        request, static_cast<int64_t>(engine_.sequence_bytes(*request.codec)));
    if (!memory.has_value()) return false;
    request.live.memory = *std::move(memory);
  }
  std::vector<KvBlockRef> blocks;
  for (const BlockHold& hold : request.live.holds) blocks.push_back(hold.kv());
  absl::StatusOr<std::unique_ptr<Sequence>> sequence = engine_.NewSequence(
      *request.codec,
      std::span(request.tokens).first(blocks.size() * kBlockTokens), blocks,
      request.remat);
  if (!sequence.ok()) {
    FailOrCut(request, sequence.status());
    return false;
  }
  request.live.codec = request.codec;
  request.live.sequence = *std::move(sequence);
  request.live.remat = request.remat;
  return true;
}

// Returns whether there was anything to compute.
bool Scheduler::Compute() {
  // First memory for all, the oldest first, which may preempt others; then the
  // step of those that are left.
  for (const std::shared_ptr<ActiveRequest>& request :
       std::vector<std::shared_ptr<ActiveRequest>>(running_)) {
    if (request->state == RequestState::kReady && request->may_compute) {
      request->may_compute = Prepare(*request);
    }
  }
  std::vector<std::shared_ptr<ActiveRequest>> ready;
  for (const std::shared_ptr<ActiveRequest>& request : running_) {
    if (request->state != RequestState::kReady || !request->may_compute)
      continue;
    if (request->solo) {
      ready.assign(1, request);
      break;
    }
    ready.push_back(request);
  }
  std::stable_partition(ready.begin(), ready.end(), [](const auto& request) {
    return request->decoding();
  });
  int64_t budget = std::max(options_.step_rows, 1);
  std::vector<ActiveRequest*> requests;
  std::vector<StepItem> items;
  for (const std::shared_ptr<ActiveRequest>& request : ready) {
    const int64_t rows = request->live.num_rows();
    const int64_t target = request->target_rows();
    const int64_t count =
        std::min({kBlockTokens - rows % kBlockTokens, target - rows, budget});
    if (count == 0) break;
    budget -= count;
    StepItem item;
    item.sequence = request->live.sequence.get();
    item.tokens =
        std::span(request->tokens)
            .subspan(static_cast<size_t>(rows), static_cast<size_t>(count));
    if (request->kind == RequestKind::kScore) {
      if (rows + count >= request->next_score)
        item.logits_mode = LogitsMode::kAll;
    } else if (rows + count == target) {
      item.logits_mode = LogitsMode::kLast;
    }
    requests.push_back(request.get());
    items.push_back(item);
  }
  if (items.empty()) return false;
  RunStep(requests, items);
  return true;
}

void Scheduler::RunStep(std::span<ActiveRequest* const> requests,
                        std::span<StepItem> items) {
  const SteadyTime begin = steady_clock::now();
  const absl::Status status = engine_.Step(items);
  const SteadyTime end = steady_clock::now();
  if (absl::IsResourceExhausted(status) && MakeRoomOnDevice()) return;
  if (!status.ok()) {
    // One of them is the reason: each goes on alone, and who then fails again
    // ends. Their sequences are made anew.
    XC_LOG_ERROR("step failed", "sequences={} why={}", items.size(),
                 LogValue(std::string(status.message())));
    for (ActiveRequest* request : requests) {
      planner_.LandAll(*request);
      request->live.sequence.reset();
      if (items.size() == 1) {
        FailOrCut(*request, absl::IsResourceExhausted(status)
                                ? status
                                : absl::InternalError(status.message()));
      } else {
        request->solo = true;
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
    const bool decoded = requests[i]->kind != RequestKind::kScore &&
                         requests[i]->generated() > 0 && count == 1;
    if (decoded) continue;
    num_prefill += count;
    requests[i]->final.prefilled_tokens += static_cast<uint64_t>(count);
    requests[i]->final.timings.prefill_us += MicrosBetween(begin, end);
  }
  const double seconds = SecondsBetween(begin, end);
  if (num_prefill >= kMinRateRows) rates_.AddPrefill(num_rows, seconds);
  if (num_prefill == 0) rates_.AddDecode(num_rows, seconds);
  metrics_.Observe(CoreHistogram::kStep, seconds);
  metrics_.Add(CoreCounter::kSteps, 1);
  metrics_.Add(CoreCounter::kStepRows, static_cast<uint64_t>(num_rows));
  for (size_t i = 0; i < items.size(); ++i) {
    requests[i]->solo = false;
    TakeSealed(*requests[i]);
    AfterRows(*requests[i], items[i], end);
  }
}

void Scheduler::TakeSealed(ActiveRequest& request) {
  for (SealedBlock& sealed : request.live.sequence->TakeSealed()) {
    metrics_.Add(CoreCounter::kBlocksSealed, 1);
    MemoryReservation memory = std::move(request.next_block);
    ShrinkTo(*sealed.kv, &memory);
    if (request.options.no_cache) {
      request.live.holds.push_back(
          cache_.KeepPrivate(std::move(sealed.kv), std::move(memory)));
      continue;
    }
    const PageKey key = request.KeyOfBlock(sealed.block_index);
    const PageKey parent = sealed.block_index == 0
                               ? kRootPageKey
                               : request.KeyOfBlock(sealed.block_index - 1);
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
    request.live.holds.push_back(cache_.Insert(key, sealed.block_index,
                                               std::move(sealed.kv),
                                               std::move(memory), stored));
    planner_.Land(request, key);
  }
}

void Scheduler::AfterRows(ActiveRequest& request, const StepItem& item,
                          SteadyTime now) {
  if (request.kind == RequestKind::kScore) {
    ScoreRows(request, item);
    return;
  }
  if (item.logits.empty()) return;
  const SampledToken token = SampleToken(
      item.logits, request.penalty_history, request.options.sampling,
      static_cast<int64_t>(request.tokens.size()),
      std::max(0, request.options.num_logprobs - 1));
  if (request.generated() == 0) {
    request.first_token = now;
    request.final.timings.ttft_us = MicrosBetween(request.submitted, now);
    metrics_.Observe(CoreHistogram::kTtft,
                     SecondsBetween(request.submitted, now));
  } else {
    metrics_.Observe(CoreHistogram::kInterToken,
                     SecondsBetween(request.last_token, now));
  }
  request.last_token = now;
  const FinishReason reason =
      request.AcceptToken(token, *deps_.tokenizer, max_context_);
  if (reason != FinishReason::kNone) FinishGeneration(request, reason);
}

// Row r's logits say how likely the token after it is.
void Scheduler::ScoreRows(ActiveRequest& request, const StepItem& item) {
  const int64_t end = request.live.num_rows();
  const int64_t begin = end - static_cast<int64_t>(item.tokens.size());
  const auto vocab = static_cast<size_t>(engine_.info().vocab_size);
  std::vector<SampledToken> scored;
  if (!item.logits.empty()) {
    for (; request.next_score <= end; ++request.next_score) {
      const auto row = static_cast<size_t>(request.next_score - 1 - begin);
      const std::span<const float> logits =
          item.logits.subspan(row * vocab, vocab);
      const auto position = static_cast<size_t>(request.next_score);
      SampledToken token;
      if (request.top_logprobs > 0) {
        token = SampleToken(logits, {}, SamplingParams(), request.next_score,
                            request.top_logprobs);
      }
      token.token = request.tokens[position];
      token.logprob = LogProb(logits, token.token);
      scored.push_back(std::move(token));
    }
  }
  if (!scored.empty()) request.sink->OnDelta("", scored);
  if (end >= request.target_rows()) FinishScore(request);
}

}  // namespace xcache
