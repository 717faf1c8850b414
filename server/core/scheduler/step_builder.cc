#include "server/core/scheduler/step_builder.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "cachestore/cache_store.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/sampler.h"
#include "engine/types.h"

namespace xcache {
namespace {

using std::chrono::steady_clock;

// Steps with fewer rows of prompts say little about the rate of prefill.
constexpr int64_t kMinRateRows = 32;

// What a row adds to a step while that is not measured, of all of it.
constexpr double kUnknownRow = 0.2;
// And at most: what is nearly sure is drafted whatever was measured, which
// would otherwise never be measured again.
constexpr double kMostRow = 0.7;

// Rows that a request can have of one step.
int64_t MostRows(const ActiveRequest& request) {
  const int64_t rows = request.live.num_rows();
  return std::min(kBlockTokens - rows % kBlockTokens,
                  request.target_rows() - rows);
}

}  // namespace

absl::Status StepBuilder::Prepare(ActiveRequest& request) {
  const auto window =
      static_cast<size_t>(request.codec->exact_window() / kBlockTokens);
  while (request.next_blocks.size() < window) {
    XC_ASSIGN_OR_RETURN(
        MemoryReservation memory,
        working_sets_.Reserve(request,
                              static_cast<int64_t>(engine_.kv_block_bytes())));
    request.next_blocks.push_back(std::move(memory));
  }
  if (request.live.sequence != nullptr) return absl::OkStatus();
  if (request.live.memory.bytes() == 0) {
    XC_ASSIGN_OR_RETURN(
        request.live.memory,
        working_sets_.Reserve(
            request,
            static_cast<int64_t>(engine_.sequence_bytes(*request.codec))));
  }
  std::vector<KvBlockRef> blocks;
  for (const BlockHold& hold : request.live.holds) blocks.push_back(hold.kv());
  XC_ASSIGN_OR_RETURN(
      request.live.sequence,
      engine_.NewSequence(
          *request.codec,
          std::span(request.tokens).first(blocks.size() * kBlockTokens), blocks,
          request.remat));
  request.live.codec = request.codec;
  request.live.remat = request.remat;
  return absl::OkStatus();
}

bool StepBuilder::Compute() {
  // First memory for all, the oldest first, which may preempt others; then the
  // step of those that are left.
  const std::vector<RunQueue::RequestPtr> running = queue_.running();
  for (const RunQueue::RequestPtr& request : running) {
    if (request->state != RequestState::kReady || !request->may_compute) {
      continue;
    }
    const absl::Status ready = Prepare(*request);
    request->may_compute = ready.ok();
    if (!ready.ok() && !absl::IsUnavailable(ready)) {
      finisher_.FailOrCut(*request, ready);
    }
  }
  Step step = Build();
  if (step.items.empty()) return false;
  Run(std::move(step));
  return true;
}

StepBuilder::Step StepBuilder::Build() const {
  std::vector<RunQueue::RequestPtr> ready;
  for (const RunQueue::RequestPtr& request : queue_.running()) {
    if (request->state != RequestState::kReady || !request->may_compute) {
      continue;
    }
    if (request->solo) {
      ready.assign(1, request);
      break;
    }
    ready.push_back(request);
  }
  const auto prompts = std::stable_partition(
      ready.begin(), ready.end(),
      [](const auto& request) { return request->decoding(); });
  std::stable_sort(ready.begin(), prompts, [](const auto& a, const auto& b) {
    return a->last_step < b->last_step;
  });
  Draft(ready);
  Step step;
  std::map<std::string_view, size_t> part_of;
  for (const RunQueue::RequestPtr& request : ready) {
    const auto [it, is_new] =
        part_of.emplace(request->base.tenant, step.parts.size());
    if (is_new) step.parts.push_back(shares_.PartOf(request->base.tenant));
    FairShares::Part& part = step.parts[it->second];
    part.wants += MostRows(*request);
    part.drafts += static_cast<int64_t>(request->num_drafted);
    const auto depth = static_cast<double>(request->live.num_rows());
    if (is_new) part.depth = depth;
    // Of those that decode, a row of each, it is the mean.
    if (request->decoding()) {
      part.depth += (depth - part.depth) / static_cast<double>(part.wants);
    }
    part.waits = part.waits || request->decoding();
  }
  if (step.parts.empty()) return step;
  shares_.Share(step_rows_, step.parts);
  std::vector<int64_t> left;
  for (const FairShares::Part& part : step.parts) left.push_back(part.gets);
  for (RunQueue::RequestPtr& request : ready) {
    const size_t part = part_of.at(request->base.tenant);
    int64_t& budget = left[part];
    const int64_t rows = request->live.num_rows();
    const int64_t target = request->target_rows();
    const int64_t count = std::min(MostRows(*request), budget);
    if (count == 0) continue;
    budget -= count;
    step.parts[part].keys +=
        static_cast<double>(count) *
        (static_cast<double>(rows) + static_cast<double>(count) / 2);
    if ((rows + count) % kBlockTokens == 0) ++step.parts[part].seals;
    StepItem item;
    item.sequence = request->live.sequence.get();
    item.tokens =
        std::span(request->tokens)
            .subspan(static_cast<size_t>(rows), static_cast<size_t>(count));
    if (request->kind == RequestKind::kScore) {
      if (rows + count >= request->next_score) {
        item.logits_mode = LogitsMode::kAll;
      }
    } else if (request->kind == RequestKind::kEmbed) {
      if (request->pooling == Pooling::kMean || rows + count == target) {
        item.logits_mode = LogitsMode::kHidden;
      }
    } else if (rows + count == target) {
      item.logits_mode = LogitsMode::kLast;
    }
    step.requests.push_back(std::move(request));
    step.items.push_back(item);
  }
  for (size_t i = 0; i < step.items.size(); ++i) {
    ActiveRequest& request = *step.requests[i];
    const size_t part = part_of.at(request.base.tenant);
    request.num_drafted =
        std::min(request.num_drafted, static_cast<size_t>(left[part]));
    if (request.num_drafted == 0) continue;
    const auto count = static_cast<int64_t>(request.num_drafted);
    left[part] -= count;
    step.parts[part].keys +=
        static_cast<double>(count * request.live.num_rows());
    request.draft_rows.resize(1 + request.num_drafted);
    step.items[i].tokens = request.draft_rows;
    step.items[i].logits_mode = LogitsMode::kAll;
  }
  return step;
}

void StepBuilder::Draft(std::span<const RunQueue::RequestPtr> ready) const {
  const StepCost& cost = shares_.cost();
  double rows = 0, keys = 0, tokens = 0;  // of the step without drafts
  for (const RunQueue::RequestPtr& request : ready) {
    request->num_drafted = 0;
    const auto count = static_cast<double>(MostRows(*request));
    rows += count;
    keys += count * static_cast<double>(request->live.num_rows());
    if (request->decoding()) tokens += 1;
  }
  double seconds =
      cost.seconds(std::min(rows, static_cast<double>(step_rows_)), keys);
  for (const RunQueue::RequestPtr& request : ready) {
    if (!request->decoding() || !request->speculates || request->solo) continue;
    const int64_t num_rows = request->live.num_rows();
    const auto context = static_cast<int64_t>(request->tokens.size());
    const int64_t most =
        std::min({static_cast<int64_t>(Drafter::kMostTokens),
                  kBlockTokens - 2 - num_rows % kBlockTokens,
                  request->options.max_tokens - request->generated() - 1,
                  max_context_ - context - 1});
    if (most <= 0) continue;
    request->draft_rows.assign(1, request->tokens.back());
    const auto add = [&](std::span<const TokenId> draft) {
      request->num_drafted = draft.size();
      request->draft_rows.insert(request->draft_rows.end(), draft.begin(),
                                 draft.end());
    };
    if (draft_) {
      add(draft_(request->tokens, static_cast<size_t>(most)));
      continue;
    }
    Drafter& drafter = request->drafter;
    drafter.Look(request->tokens);
    double row = cost.row_seconds(static_cast<double>(num_rows));
    row = row <= 0 ? kUnknownRow * seconds : std::min(row, kMostRow * seconds);
    size_t count = 0;
    double chance = 1;
    for (; count < std::min(drafter.tokens().size(), static_cast<size_t>(most));
         ++count) {
      chance *= drafter.chance(count);
      if (chance * seconds < row * tokens) break;
      seconds += row;
      tokens += chance;
    }
    add(drafter.tokens().first(count));
  }
}

void StepBuilder::Run(Step step) {
  const SteadyTime begin = steady_clock::now();
  const absl::Status status = engine_.Step(step.items);
  const SteadyTime end = steady_clock::now();
  if (absl::IsResourceExhausted(status) && working_sets_.MakeRoomOnDevice()) {
    return;
  }
  if (!status.ok()) {
    Failed(step, status);
    return;
  }
  ++num_steps_;
  int64_t num_rows = 0;
  int64_t num_prefill = 0;
  for (size_t i = 0; i < step.items.size(); ++i) {
    ActiveRequest& request = *step.requests[i];
    const auto count = static_cast<int64_t>(step.items[i].tokens.size());
    num_rows += count;
    // Its row is already there, so it decoded if only that one is, beside what
    // was drafted.
    const bool decoded = request.answers() && request.generated() > 0 &&
                         count == 1 + static_cast<int64_t>(request.num_drafted);
    if (decoded) continue;
    num_prefill += count;
    request.final.prefilled_tokens += static_cast<uint64_t>(count);
    request.final.timings.prefill_us += MicrosBetween(begin, end);
  }
  const double seconds = SecondsBetween(begin, end);
  if (num_prefill >= kMinRateRows) rates_.AddPrefill(num_rows, seconds);
  metrics_.Observe(CoreHistogram::kStep, seconds);
  metrics_.Add(CoreCounter::kSteps, 1);
  metrics_.Add(CoreCounter::kStepRows, static_cast<uint64_t>(num_rows));
  int64_t num_tokens = 0;
  for (size_t i = 0; i < step.items.size(); ++i) {
    step.requests[i]->solo = false;
    step.requests[i]->last_step = num_steps_;
    TakeSealed(*step.requests[i]);
    num_tokens += AfterRows(*step.requests[i], step.items[i], end);
  }
  if (num_prefill == 0) rates_.AddDecode(num_tokens, seconds);
  // With what comes after it: that is between two tokens, too.
  shares_.Ran(step.parts, SecondsBetween(begin, steady_clock::now()));
}

void StepBuilder::Failed(const Step& step, const absl::Status& status) {
  XC_LOG_ERROR("step failed", "sequences={} why={}", step.items.size(),
               LogValue(std::string(status.message())));
  for (const RunQueue::RequestPtr& request : step.requests) {
    working_sets_.flights().LandAll(*request);
    request->live.sequence.reset();  // made anew
    if (step.items.size() > 1 || request->num_drafted > 0) {
      request->solo = true;
      continue;
    }
    finisher_.FailOrCut(*request, absl::IsResourceExhausted(status)
                                      ? status
                                      : absl::InternalError(status.message()));
  }
}

void StepBuilder::TakeSealed(ActiveRequest& request) {
  for (SealedBlock& sealed : request.live.sequence->TakeSealed()) {
    metrics_.Add(CoreCounter::kBlocksSealed, 1);
    MemoryReservation memory = std::move(request.next_blocks.back());
    request.next_blocks.pop_back();
    WorkingSets::ShrinkTo(*sealed.kv, &memory);
    BlockCache& blocks = working_sets_.blocks();
    if (request.options.no_cache) {
      request.live.holds.push_back(
          blocks.KeepPrivate(std::move(sealed.kv), std::move(memory)));
      continue;
    }
    const int64_t index = sealed.block_index;
    const PageKey key = request.KeyOfBlock(index);
    bool stored = deps_.store->pages().Contains(key);
    if (!stored) {
      const PageKey parent =
          index == 0 ? kRootPageKey : request.KeyOfBlock(index - 1);
      const absl::Status put =
          deps_.store->PutPage(key, parent, std::move(sealed.page));
      stored = put.ok();
      if (!stored) {
        XC_LOG_DEBUG("page not kept", "key={} why={}", ToHex(key),
                     LogValue(std::string(put.message())));
      }
    }
    request.live.holds.push_back(blocks.Insert(key, index, std::move(sealed.kv),
                                               std::move(memory), stored));
    working_sets_.flights().Land(request, key);
  }
}

int64_t StepBuilder::AfterRows(ActiveRequest& request, const StepItem& item,
                               SteadyTime now) {
  if (request.kind == RequestKind::kScore) {
    ScoreRows(request, item);
    return 0;
  }
  if (request.kind == RequestKind::kEmbed) {
    PoolRows(request, item);
    return 0;
  }
  if (item.logits.empty()) return 0;
  // A row's token is the answer's if all tokens before it are: those of the
  // draft as far as they are what was sampled.
  const auto vocab = static_cast<size_t>(engine_.info().vocab_size);
  const size_t num_drafted = request.num_drafted;
  request.final.drafted_tokens += num_drafted;
  for (size_t row = 0;; ++row) {
    const absl::StatusOr<SampledToken> sampled =
        Sample(request, item.logits.subspan(row * vocab, vocab));
    if (!sampled.ok()) {
      finisher_.Fail(request, sampled.status());
      return static_cast<int64_t>(row);
    }
    request.drafter.Follow(sampled->token);
    const bool was_drafted =
        row < num_drafted && item.tokens[row + 1] == sampled->token;
    if (was_drafted) ++request.final.accepted_tokens;
    const FinishReason reason = TakeToken(request, *sampled, now);
    if (was_drafted && reason == FinishReason::kNone) continue;
    // What was forwarded beyond the answer's last token but one is forgotten.
    if (num_drafted > 0) {
      request.live.sequence->Truncate(
          static_cast<int64_t>(request.tokens.size()) - 1);
    }
    if (reason != FinishReason::kNone) finisher_.Finish(request, reason);
    return static_cast<int64_t>(row) + 1;
  }
}

FinishReason StepBuilder::TakeToken(ActiveRequest& request,
                                    const SampledToken& token, SteadyTime now) {
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
  request.minute_tokens.Spend(1);
  return request.AcceptToken(token, *deps_.tokenizer, max_context_);
}

absl::StatusOr<SampledToken> StepBuilder::Sample(
    ActiveRequest& request, std::span<const float> logits) {
  const auto sample = [&](std::span<const uint32_t> allowed) {
    return SampleToken(logits, request.penalty_history,
                       request.options.sampling,
                       static_cast<int64_t>(request.tokens.size()),
                       std::max(0, request.options.num_logprobs - 1), allowed);
  };
  if (request.grammar_matcher == nullptr) return sample({});
  const SteadyTime begin = steady_clock::now();
  XC_ASSIGN_OR_RETURN(const std::span<const uint32_t> allowed,
                      request.grammar_matcher->NextTokens());
  const SteadyTime between = steady_clock::now();
  SampledToken token = sample(allowed);
  const SteadyTime end = steady_clock::now();
  XC_RETURN_IF_ERROR(request.grammar_matcher->Accept(token.token));
  metrics_.Observe(CoreHistogram::kGrammarMask,
                   SecondsBetween(begin, between) +
                       SecondsBetween(end, steady_clock::now()));
  return token;
}

// Row r's logits say how likely the token after it is.
void StepBuilder::ScoreRows(ActiveRequest& request, const StepItem& item) {
  const int64_t end = request.live.num_rows();
  const int64_t begin = end - static_cast<int64_t>(item.tokens.size());
  const auto vocab = static_cast<size_t>(engine_.info().vocab_size);
  std::vector<SampledToken> scored;
  if (!item.logits.empty()) {
    for (; request.next_score <= end; ++request.next_score) {
      const auto row = static_cast<size_t>(request.next_score - 1 - begin);
      const std::span<const float> logits =
          item.logits.subspan(row * vocab, vocab);
      SampledToken token;
      if (request.top_logprobs > 0) {
        token = SampleToken(logits, {}, SamplingParams(), request.next_score,
                            request.top_logprobs);
      }
      token.token = request.tokens[static_cast<size_t>(request.next_score)];
      token.logprob = LogProb(logits, token.token);
      scored.push_back(std::move(token));
    }
  }
  if (!scored.empty()) request.sink->OnDelta("", scored);
  if (end >= request.target_rows()) finisher_.FinishWhole(request);
}

// In order and in double, so that the sum is one however the text was cut.
void StepBuilder::PoolRows(ActiveRequest& request, const StepItem& item) {
  const int64_t end = request.live.num_rows();
  const int64_t target = request.target_rows();
  const auto width = static_cast<size_t>(engine_.info().d_model);
  request.pooled.resize(width);
  if (!item.hidden.empty()) {
    const int64_t begin = end - static_cast<int64_t>(item.tokens.size());
    // One that was put back computes rows again that are in the sum already.
    if (request.pooling == Pooling::kLast) request.next_score = target - 1;
    for (; request.next_score < end; ++request.next_score) {
      const auto row = static_cast<size_t>(request.next_score - begin);
      const auto hidden = item.hidden.subspan(row * width, width);
      for (size_t i = 0; i < width; ++i) request.pooled[i] += hidden[i];
    }
  }
  if (end < target) return;
  const double rows =
      request.pooling == Pooling::kMean ? static_cast<double>(target) : 1.0;
  for (const double sum : request.pooled) {
    request.final.embedding.push_back(static_cast<float>(sum / rows));
  }
  finisher_.FinishWhole(request);
}

}  // namespace xcache
