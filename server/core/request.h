// What a caller asks of the server's core and what it gets back: plain values,
// without gRPC or protobuf. The fields mirror proto/xcache/v1.
#ifndef XCACHE_SERVER_CORE_REQUEST_H_
#define XCACHE_SERVER_CORE_REQUEST_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "cachestore/durability.h"
#include "engine/base/mutex.h"
#include "engine/grammar/grammar_spec.h"
#include "engine/model/chat_template.h"
#include "engine/pooling.h"
#include "engine/sampler.h"
#include "engine/types.h"

namespace xcache {

using SteadyTime = std::chrono::steady_clock::time_point;
using SessionKey = std::pair<std::string, std::string>;  // tenant, id

// Tells a request to stop. Its owner may call Cancel() at any time, before,
// while or after the request runs; it takes effect at the next step. A
// cancelled request finishes with CANCELLED. Thread-safe.
class Cancellation {
 public:
  void Cancel() XC_EXCLUDES(mu_);
  bool cancelled() const XC_EXCLUDES(mu_);

  // For the core: what to call, once, when it is cancelled; at once where it
  // already was. An empty function takes the last one back: it is not running
  // any more when this returns. `waker` must not call into this object.
  void SetWaker(std::function<void()> waker) XC_EXCLUDES(mu_);

 private:
  mutable Mutex mu_;
  bool cancelled_ XC_GUARDED_BY(mu_) = false;
  std::function<void()> waker_ XC_GUARDED_BY(mu_);
};

// What every request has.
struct RequestBase {
  std::string tenant;
  SteadyTime deadline = SteadyTime::max();
  std::shared_ptr<Cancellation> cancellation;  // may be null
  // For the end of log lines that are of this request: " key=value"s.
  std::string log_ids;
};

inline constexpr size_t kMaxStops = 16;
inline constexpr size_t kMaxStopBytes = 256;
inline constexpr int kMaxLogprobs = 21;     // the token's own and 20 others
inline constexpr int kMaxTopLogprobs = 20;  // of ScoreRequest

struct GenerationOptions {
  SamplingParams sampling;        // its seed is not looked at
  std::optional<uint64_t> seed;   // unset: chosen, and returned
  int64_t max_tokens = 512;       // at least 1
  std::vector<std::string> stop;  // at most kMaxStops, 1 to kMaxStopBytes each
  // 0: none; n: each token's log-probability and its n - 1 best alternatives'.
  int num_logprobs = 0;     // at most kMaxLogprobs
  bool no_cache = false;    // neither look up nor keep any page
  bool ignore_eos = false;  // go on at the end token
  // Whether what was said before is drafted as what comes next: "ngram" or
  // "off"; empty: as the server has it. Changes no answer.
  std::string speculate;
  // What the answer is held to. It ends by the end token where it is all there,
  // and by a stop string or for its length as any.
  GrammarSpec grammar;
};

// What becomes of a turn.
enum class TurnKeep {
  kInPlace,  // the session's next; of a whole history nothing is kept
  kNew,      // a session of its own, made with it in one commit
  kNothing,
};

// One turn of a chat: of a session (`session_id`) and its new messages, or,
// with an empty `session_id`, a whole history.
struct ChatTurn : RequestBase {
  std::string session_id;
  std::vector<ChatMessage> messages;
  std::optional<uint64_t> expected_turn;
  TurnKeep keep = TurnKeep::kInPlace;
  // For kNew: the id of the session, which is new: random, and not looked for.
  std::string new_session_id;
  // It goes on from the session's answer of that note, which for kInPlace must
  // be the last message; empty: from all that there is.
  std::string after;
  // What the conversation begins with, in place of the system prompt that it
  // has; empty: with none.
  std::optional<std::string> system_prompt;
  // Kept with the answer (AnswerNote), where `name` is not empty.
  struct Note {
    std::string name, data;
  } note;
  // Answers the session's last user message again, without new messages: the
  // last answer, if there is one, gives way to the new one when that commits.
  bool regenerate = false;
  // Of a session: what is there of the answer when the turn is cancelled, its
  // deadline passes or the server ends is committed as the answer, instead of
  // nothing. The status stays what it is, but for the server's end, which is OK
  // then.
  bool keep_partial = false;
  GenerationOptions options;
};

// Continues a raw prompt.
struct GenerateRequest : RequestBase {
  std::vector<TokenId> prompt;
  GenerationOptions options;
};

// Log-probabilities of given tokens, at least 2, from max(first, 1) on.
struct ScoreRequest : RequestBase {
  std::vector<TokenId> tokens;
  int64_t first = 0;
  int top_logprobs = 0;  // at most kMaxTopLogprobs
  bool no_cache = false;
};

// One vector of a text's tokens, of which there is one at least.
struct EmbedRequest : RequestBase {
  std::vector<TokenId> tokens;
  Pooling pooling = Pooling::kMean;
};

// INVALID_ARGUMENT names the field, what it may be and what it is. What tokens
// there may be depends on the model: that is checked where a request is
// submitted.
absl::Status CheckOptions(const GenerationOptions& options);
absl::Status CheckScore(const ScoreRequest& request);

// Tokens by where their rows came from (rule R7).
struct ReusedCounts {
  uint64_t device = 0;
  uint64_t host = 0;
  uint64_t disk = 0;
  uint64_t remote = 0;
  uint64_t total() const { return device + host + disk + remote; }
};

enum class FinishReason {
  kNone,  // it failed
  kEnd,   // the model ended its turn
  kStop,  // a stop string
  kMaxTokens,
  kContext,    // the context is full
  kCancelled,  // by the caller, the deadline or the server's end; it was kept
};

// What a session has of an answer beside its text, committed with it.
struct AnswerNote {
  std::string name;           // the caller's, and what it is found by
  std::string data;           // the caller's
  uint64_t num_messages = 0;  // up to the answer, itself included
  FinishReason finish_reason = FinishReason::kNone;
  uint64_t prompt_tokens = 0;
  uint64_t reused_tokens = 0;
  uint64_t generated_tokens = 0;
};

struct Timings {
  int64_t queue_us = 0;
  int64_t restore_us = 0;  // waiting for pages and rematerializing them
  int64_t remat_us = 0;    // rematerializing alone, within restore_us
  int64_t prefill_us = 0;
  int64_t decode_us = 0;
  int64_t ttft_us = 0;  // submitted to first token sampled
  int64_t commit_us = 0;
  int64_t total_us = 0;  // submitted to finished
};

struct FinalInfo {
  FinishReason finish_reason = FinishReason::kNone;
  uint64_t prompt_tokens = 0;  // the whole context that the answer was made of
  uint64_t generated_tokens = 0;
  uint64_t drafted_tokens = 0;   // that had a row of a step
  uint64_t accepted_tokens = 0;  // those of them that the answer took
  ReusedCounts reused;
  uint64_t prefilled_tokens = 0;
  Durability durability = Durability::kNone;  // of the turn
  Timings timings;
  uint64_t seed = 0;
  std::string stop;   // for kStop: which
  uint64_t turn = 0;  // turns of the session now; 0 without a session
  // With RESOURCE_EXHAUSTED: when to try again.
  int64_t retry_after_ms = 0;
  // Of EmbedRequest: [d_model], of any length.
  std::vector<float> embedding;
};

// What is changed of a session beside its turns. Unset: it stays.
struct SessionUpdate {
  std::optional<std::string> title;
  // After its last turn; counted from now at first. Zero: it never expires.
  std::optional<std::chrono::milliseconds> ttl;
  std::optional<bool> pinned;
  std::optional<std::string> data;  // the caller's own, as in SessionInfo
  std::vector<std::string> forget;  // answers' notes, by name
  // Then also the messages that come after the last answer with a note.
  bool cut = false;
};

// Where a request's output goes. Called from the core's own threads, one call
// at a time, in order; must not block and must not call back into the core.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  // Some more text, whole UTF-8 characters, and where log-probabilities were
  // asked for the tokens that it is made of; one of the two may be empty. Bytes
  // of the model that are no UTF-8 arrive as U+FFFD. For Score: the next scored
  // tokens.
  virtual void OnDelta(std::string_view text,
                       std::span<const SampledToken> tokens) = 0;
  // The last call, exactly one for each request that was submitted.
  virtual void OnFinish(const absl::Status& status, const FinalInfo& final) = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_REQUEST_H_
