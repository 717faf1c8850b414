// A request's own tokens: keys of its blocks, its answer's text, its history.
#include "server/core/scheduler/active_request.h"

#include <algorithm>
#include <string_view>

#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "engine/types.h"

namespace xcache {

int64_t ActiveRequest::target_rows() const {
  const auto n = static_cast<int64_t>(tokens.size());
  return kind == RequestKind::kScore ? n - 1 : n;
}

int64_t ActiveRequest::reusable_blocks() const {
  if (kind == RequestKind::kScore) return (next_score - 1) / kBlockTokens;
  return (static_cast<int64_t>(tokens.size()) - 1) / kBlockTokens;
}

int64_t ActiveRequest::max_tokens(int64_t max_context) const {
  const int64_t more = answers() ? options.max_tokens : 0;
  // In this order, for max_tokens may be anything.
  return prompt_tokens + std::min(more, max_context - prompt_tokens);
}

int64_t ActiveRequest::asked_tokens() const {
  if (lease == nullptr || kept_messages == 0) return prompt_tokens;
  return prompt_tokens - lease->record().messages[kept_messages - 1].token_end;
}

void ActiveRequest::GiveBack() {
  queued_tokens = TenantHold();
  minute_tokens = TenantHold();
  page_bytes = TenantHold();
  place = SessionPlace();
}

void ActiveRequest::EndLoad() {
  if (load_ended != nullptr) *load_ended = true;
  load_ended = nullptr;
  restore.clear();
}

void ActiveRequest::ComputeBlocks(int64_t first, int64_t last) {
  no_restore_before = last;
  restore_again_before = std::min(restore_again_before, first);
}

std::span<const TokenId> ActiveRequest::TokensOfBlock(
    int64_t block_index) const {
  return std::span(tokens).subspan(
      static_cast<size_t>(block_index * kBlockTokens), kBlockTokens);
}

const PageKey& ActiveRequest::KeyOfBlock(int64_t block_index,
                                         const Digest& cache_fp) {
  while (static_cast<int64_t>(keys.size()) <= block_index) {
    const PageKey parent = keys.empty() ? kRootPageKey : keys.back();
    keys.push_back(
        ComputePageKey(cache_fp, base.tenant, parent,
                       TokensOfBlock(static_cast<int64_t>(keys.size()))));
  }
  return keys[static_cast<size_t>(block_index)];
}

FinishReason ActiveRequest::AcceptToken(const SampledToken& token,
                                        const Tokenizer& tokenizer,
                                        int64_t max_context) {
  tokens.push_back(token.token);
  penalty_history.push_back(token.token);
  ++final.generated_tokens;
  if (options.num_logprobs > 0) undelivered.push_back(token);
  at_end_token =
      !options.ignore_eos && tokenizer.IsEndOfGeneration(token.token);
  const std::string bytes =
      at_end_token ? ""
                   : tokenizer.TokenBytes(token.token, /*with_special=*/false);
  answer_bytes += bytes;
  token_ends.push_back(answer_bytes.size());
  std::string sendable;
  const bool stopped = matcher->Append(bytes, &sendable);
  Deliver(sendable);
  if (at_end_token) return FinishReason::kEnd;
  if (stopped) {
    final.stop = matcher->stop();
    return FinishReason::kStop;
  }
  if (generated() >= options.max_tokens) return FinishReason::kMaxTokens;
  if (static_cast<int64_t>(tokens.size()) >= max_context) {
    return FinishReason::kContext;
  }
  return FinishReason::kNone;
}

void ActiveRequest::FlushText() {
  std::string sendable;
  if (matcher->stop().empty()) matcher->Finish(&sendable);
  Deliver(sendable);
}

void ActiveRequest::Deliver(const std::string& new_text) {
  text += new_text;
  if (lease != nullptr && lease->check() != nullptr &&
      !lease->check()->result().value_or(absl::UnavailableError("")).ok()) {
    return;
  }
  const std::string_view unsent = std::string_view(text).substr(num_sent);
  // A token's log-probability goes out with the last of its bytes.
  size_t ready = 0;
  while (ready < undelivered.size() &&
         token_ends[num_delivered + ready] <= matcher->settled_bytes()) {
    ++ready;
  }
  if (unsent.empty() && ready == 0) return;
  sink->OnDelta(unsent, std::span(undelivered).first(ready));
  num_sent = text.size();
  undelivered.erase(undelivered.begin(),
                    undelivered.begin() + static_cast<ptrdiff_t>(ready));
  num_delivered += ready;
}

absl::StatusOr<std::vector<TokenId>> ActiveRequest::History(
    const ChatTemplate& chat_template, const Tokenizer& tokenizer) const {
  const std::string_view answer = answer_bytes;
  const size_t text_end = matcher->text_bytes();
  size_t kept = token_ends.size();
  if (text_end < answer.size()) {
    // A token that the text ends in goes, and one that ends within a character:
    // what they have of the text is encoded anew.
    while (kept > 0 && (token_ends[kept - 1] > text_end ||
                        CompleteUtf8Prefix(answer.substr(
                            0, token_ends[kept - 1])) < token_ends[kept - 1])) {
      --kept;
    }
  } else if (kept > 0 && at_end_token) {
    // Models have several end tokens; the history has the template's.
    --kept;
  }
  std::vector<TokenId> history(
      tokens.begin(),
      tokens.begin() + prompt_tokens + static_cast<ptrdiff_t>(kept));
  const size_t kept_end = kept == 0 ? 0 : token_ends[kept - 1];
  if (kept_end < text_end) {
    const std::string rest =
        ToUtf8(answer.substr(kept_end, text_end - kept_end));
    XC_ASSIGN_OR_RETURN(const std::vector<TokenId> ids,
                        tokenizer.EncodeContinued(rest));
    history.insert(history.end(), ids.begin(), ids.end());
  }
  const std::vector<TokenId> end = chat_template.AssistantEnd(false);
  history.insert(history.end(), end.begin(), end.end());
  return history;
}

int64_t WorkingSetBytes(const Engine& engine, const CodecHandle& codec,
                        int64_t num_tokens) {
  const int64_t num_blocks = (num_tokens + kBlockTokens - 1) / kBlockTokens + 1;
  return num_blocks * static_cast<int64_t>(engine.kv_block_bytes()) +
         static_cast<int64_t>(engine.sequence_bytes(codec));
}

int64_t MicrosBetween(SteadyTime begin, SteadyTime end) {
  return std::chrono::duration_cast<std::chrono::microseconds>(end - begin)
      .count();
}

double SecondsBetween(SteadyTime begin, SteadyTime end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace xcache
