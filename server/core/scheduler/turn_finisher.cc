#include "server/core/scheduler/turn_finisher.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/base/log.h"
#include "engine/types.h"
#include "server/core/reason.h"
#include "server/core/sessions/answer_notes.h"
#include "server/core/sessions/remat_setting.h"

namespace xcache {

using std::chrono::steady_clock;

RunQueue::RequestPtr TurnFinisher::Remove(ActiveRequest& request) {
  RunQueue::RequestPtr owner = queue_.Remove(request);
  working_sets_.EndMaking(request);
  return owner;
}

void TurnFinisher::Finish(ActiveRequest& request, FinishReason reason) {
  request.FlushText();
  std::vector<TokenId> history;
  if (request.lease != nullptr || request.known_answers != nullptr) {
    absl::StatusOr<std::vector<TokenId>> spoken =
        request.History(*deps_.chat_template, *deps_.tokenizer);
    if (spoken.ok()) {
      history = *std::move(spoken);
    } else if (request.lease == nullptr) {
      request.known_answers = nullptr;
    } else {
      return Fail(request, spoken.status());
    }
  }
  request.final.finish_reason = reason;
  request.final.timings.decode_us =
      MicrosBetween(request.first_token, steady_clock::now());
  RunQueue::RequestPtr owner = Remove(request);
  if (request.lease == nullptr) {
    working_sets_.LeaveBehind(request);
    Remember(request, history);
    Report(request, absl::OkStatus());
    return;
  }
  SessionRecord next = NextRecord(request, std::move(history));
  working_sets_.LeaveBehind(request);
  Commit(std::move(owner), std::move(next));
}

SessionRecord TurnFinisher::NextRecord(ActiveRequest& request,
                                       std::vector<TokenId> history) {
  SessionRecord next = request.lease->record();
  next.tokens = std::move(history);
  working_sets_.TruncateTo(request, next.tokens);
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
  next.numerics_id = deps_.engine->info().numerics_id;
  // What was said of an answer that is redone goes with it.
  KeepAnswerNotes(request.kept_messages, &next);
  if (!request.note.name.empty()) {
    AddAnswerNote({.name = request.note.name,
                   .data = request.note.data,
                   .num_messages = next.messages.size(),
                   .finish_reason = request.final.finish_reason,
                   .prompt_tokens = request.final.prompt_tokens,
                   .reused_tokens = request.final.reused.total(),
                   .generated_tokens = request.final.generated_tokens},
                  &next);
  }
  if (request.lease->is_new() || !RematOf(next.settings).has_value()) {
    // New, or of an older manifest: from now on it is what it was in this turn.
    SetRemat(request.remat, &next.settings);
    metrics_.Add(CounterOf(request.remat), 1);
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
  next.page_bytes = next.page_keys.size() * request.codec->page_bytes();
  return next;
}

void TurnFinisher::Remember(const ActiveRequest& request,
                            std::span<const TokenId> history) {
  if (request.known_answers == nullptr) return;
  const size_t begin = static_cast<size_t>(request.prompt_tokens) -
                       deps_.chat_template->AssistantHeader().size();
  request.known_answers->Add(request.answer_place, request.text,
                             history.subspan(begin));
}

void TurnFinisher::FinishWhole(ActiveRequest& request) {
  const RunQueue::RequestPtr owner = Remove(request);
  working_sets_.LeaveBehind(request);
  request.final.finish_reason = FinishReason::kEnd;
  Report(request, absl::OkStatus());
}

void TurnFinisher::Fail(ActiveRequest& request, const absl::Status& status) {
  const RunQueue::RequestPtr owner = Remove(request);
  if (request.lease != nullptr) {
    working_sets_.TruncateTo(request, request.lease->record().tokens);
    // Nobody will come for it.
    if (request.lease->is_new()) working_sets_.TruncateTo(request, {});
  }
  working_sets_.LeaveBehind(request);
  request.final.finish_reason = FinishReason::kNone;
  if (absl::IsResourceExhausted(status)) {
    request.final.retry_after_ms = queue_.RetryAfterMs();
  }
  Report(request, status);
}

void TurnFinisher::FailOrCut(ActiveRequest& request,
                             const absl::Status& status) {
  if (!absl::IsResourceExhausted(status) || request.generated() == 0) {
    Fail(request, status);
    return;
  }
  XC_LOG_WARN("answer ended for lack of memory",
              "context_tokens={} generated_tokens={} why={}{}",
              request.tokens.size(), request.generated(),
              LogValue(std::string(status.message())), request.base.log_ids);
  Finish(request, FinishReason::kContext);
}

void TurnFinisher::Refuse(ActiveRequest& request, const absl::Status& status) {
  if (request.base.cancellation != nullptr) {
    request.base.cancellation->SetWaker({});
  }
  if (absl::IsResourceExhausted(status)) {
    request.final.retry_after_ms =
        RetryAfterOf(status).value_or(queue_.RetryAfterMs());
  }
  request.lease.reset();
  request.GiveBack();
  request.sink->OnFinish(status, request.final);
}

// A committer waits for the disk, so that others go on.
void TurnFinisher::Commit(RunQueue::RequestPtr request, SessionRecord next) {
  committers_.Post([this, request = std::move(request),
                    next = std::move(next)] {
    FinalInfo& final = request->final;
    const SteadyTime begin = steady_clock::now();
    if (const auto& check = request->lease->check();
        check != nullptr && check->Wait().ok()) {
      request->SendHeld();
    }
    absl::StatusOr<Committed> committed = request->lease->Commit(next);
    const SteadyTime end = steady_clock::now();
    final.timings.commit_us = MicrosBetween(begin, end);
    final.turn = next.turn;
    metrics_.Observe(CoreHistogram::kCommit, SecondsBetween(begin, end));
    const bool is_durable = committed.ok() && committed->why.ok();
    metrics_.Add(
        is_durable ? CoreCounter::kCommits : CoreCounter::kCommitFailures, 1);
    if (!committed.ok()) {
      final.finish_reason = FinishReason::kNone;
      if (absl::IsResourceExhausted(committed.status())) {
        final.retry_after_ms = queue_.RetryAfterMs();
      }
      Report(*request, committed.status());
      return;
    }
    final.durability = committed->durability;
    Remember(*request, next.tokens);
    Report(*request, request->cut_short);
  });
}

// The last word of a request. Its session is free before the caller hears it.
void TurnFinisher::Report(ActiveRequest& request, const absl::Status& status) {
  if (request.base.cancellation != nullptr) {
    request.base.cancellation->SetWaker({});
  }
  request.lease.reset();
  request.remote.prefetch.reset();
  request.GiveBack();
  FinalInfo& final = request.final;
  const SteadyTime now = steady_clock::now();
  final.timings.total_us = MicrosBetween(request.submitted, now);
  metrics_.Observe(CoreHistogram::kEndToEnd,
                   SecondsBetween(request.submitted, now));
  const auto observe = [&](CoreHistogram histogram, int64_t us) {
    if (us > 0) metrics_.Observe(histogram, static_cast<double>(us) * 1e-6);
  };
  observe(CoreHistogram::kRestore, final.timings.restore_us);
  observe(CoreHistogram::kPrefill, final.timings.prefill_us);
  observe(CoreHistogram::kDecode, final.timings.decode_us);
  metrics_.Add(CoreCounter::kPromptTokens, final.prompt_tokens);
  metrics_.Add(CoreCounter::kGeneratedTokens, final.generated_tokens);
  metrics_.Add(CoreCounter::kPrefilledTokens, final.prefilled_tokens);
  metrics_.Add(CoreCounter::kDraftedTokens, final.drafted_tokens);
  metrics_.Add(CoreCounter::kAcceptedTokens, final.accepted_tokens);
  metrics_.Add(CoreCounter::kReusedDevice, final.reused.device);
  metrics_.Add(CoreCounter::kReusedHost, final.reused.host);
  metrics_.Add(CoreCounter::kReusedDisk, final.reused.disk);
  metrics_.Add(CoreCounter::kReusedRemote, final.reused.remote);
  request.sink->OnFinish(status, final);
  request.sink.reset();
  queue_.CountOut();
}

}  // namespace xcache
