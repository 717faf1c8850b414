// The plain values that the client library takes and gives. They mirror
// proto/xcache/v1; no generated type is needed to use the library.
#ifndef XCACHE_CLIENT_TYPES_H_
#define XCACHE_CLIENT_TYPES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace xcache::client {

enum class Role { kSystem, kUser, kAssistant };

struct Message {
  Role role = Role::kUser;
  std::string content = {};
};

// Unset fields take the server's defaults (see inference.proto).
struct SamplingParams {
  std::optional<float> temperature = {};  // 0 is greedy
  std::optional<uint32_t> top_k = {};
  std::optional<float> top_p = {};
  std::optional<float> min_p = {};
  std::optional<float> repetition_penalty = {};
  std::optional<float> presence_penalty = {};
  std::optional<float> frequency_penalty = {};
  std::optional<uint32_t> penalty_last_n = {};
  std::optional<uint64_t> seed = {};
};

struct GenerationParams {
  SamplingParams sampling = {};
  std::optional<uint32_t> max_tokens = {};
  std::vector<std::string> stop = {};
  // 0: none; n: each token's log-probability and n-1 alternatives'.
  uint32_t logprobs = 0;
  bool no_cache = false;    // neither look up nor keep pages
  bool ignore_eos = false;  // go on at the end token
  // "ngram" or "off"; empty: as the server has it. Changes no answer.
  std::string speculate = {};
};

struct TokenLogprob {
  uint32_t token_id = 0;
  std::string token = {};  // bytes, not always UTF-8 on their own
  float logprob = 0;
};

struct SampledToken {
  uint32_t token_id = 0;
  std::string token = {};
  float logprob = 0;
  std::vector<TokenLogprob> top = {};
};

struct ReusedTokens {
  uint64_t device = 0;
  uint64_t host = 0;
  uint64_t disk = 0;
  uint64_t remote = 0;
  uint64_t total() const { return device + host + disk + remote; }
};

enum class FinishReason {
  kUnknown,
  kEnd,
  kStop,
  kMaxTokens,
  kContext,
  kCancelled,  // ended before its time and kept: see ChatRequest::keep_partial
};

// Where a change of a session is when its call is answered.
enum class Durability {
  kNone,    // nothing was to be kept
  kMemory,  // in the server's memory alone; on disk as soon as that takes it
  kLocal,   // on the server's disk, synced
  kShared,  // in the store that servers share
};

// As the server measured them.
struct Timings {
  absl::Duration queue = {};
  absl::Duration restore = {};
  absl::Duration remat = {};
  absl::Duration prefill = {};
  absl::Duration decode = {};
  absl::Duration ttft = {};
  absl::Duration commit = {};
};

// What became of one answer.
struct Answer {
  std::string text = {};
  std::vector<SampledToken> tokens = {};  // where logprobs were asked for
  FinishReason finish_reason = FinishReason::kUnknown;
  std::string stop = {};  // the stop string that ended it
  uint64_t prompt_tokens = 0;
  uint64_t generated_tokens = 0;
  uint64_t drafted_tokens = 0;   // see inference.proto
  uint64_t accepted_tokens = 0;  // those of them that the answer took
  uint64_t prefilled_tokens = 0;
  ReusedTokens reused = {};
  Durability durability = Durability::kNone;
  uint64_t seed = 0;
  uint64_t turn = 0;  // turns of the session, this one included
  Timings timings = {};
  // Seen from this side: the call's start to the first response of the stream.
  absl::Duration client_ttft = absl::ZeroDuration();
};

struct ChatRequest {
  // A session and its new messages; or no session and the whole history.
  std::string session_id = {};
  std::vector<Message> messages = {};
  // The session's turns so far. Makes a retry safe.
  std::optional<uint64_t> expected_turn = {};
  GenerationParams params = {};
  // Answers the last user message again; no `messages` then.
  bool regenerate = false;
  // A cancelled or late turn leaves what there is of its answer in the session
  // instead of nothing. The call still ends with CANCELLED or
  // DEADLINE_EXCEEDED.
  bool keep_partial = false;
};

// A prompt is text, or token ids where `token_ids` is not empty.
struct Prompt {
  std::string text = {};
  std::vector<uint32_t> token_ids = {};
};

struct GenerateRequest {
  Prompt prompt = {};
  bool parse_special = false;
  GenerationParams params = {};
};

struct Tokens {
  std::vector<uint32_t> ids = {};
  std::vector<std::string> bytes = {};
};

struct TokenizeOptions {
  bool parse_special = false;
  bool add_bos = false;
};

struct Detokenized {
  std::string text = {};   // valid UTF-8
  std::string bytes = {};  // as the tokens have it
};

struct ScoreRequest {
  Prompt prompt = {};
  uint32_t first = 0;  // tokens before it are context only
  uint32_t top_logprobs = 0;
  bool no_cache = false;
};

struct ScoreResult {
  std::vector<SampledToken> tokens = {};
  double sum_logprob = 0;
  double perplexity = 0;
  uint64_t prompt_tokens = 0;
  ReusedTokens reused = {};
};

struct ModelInfo {
  std::string name = {};
  std::string architecture = {};
  std::string device = {};
  std::string numerics_id = {};
  std::string model_fp = {};
  std::string codec = {};
  std::string cache_fp = {};
  uint32_t num_layers = 0;
  uint32_t d_model = 0;
  uint32_t n_heads = 0;
  uint32_t n_kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t vocab_size = 0;
  uint32_t context_length = 0;
  uint64_t num_parameters = 0;
  std::string chat_template = {};
  double page_bytes_per_token = 0;
  double kv_fp16_bytes_per_token = 0;
  std::string server_version = {};
};

struct SessionInfo {
  std::string id = {};
  std::string title = {};
  std::string codec = {};
  std::string remat = {};  // "resume" or "step"; empty in a list
  uint64_t turn = 0;
  uint64_t num_tokens = 0;
  uint64_t num_messages = 0;
  uint64_t page_bytes = 0;
  bool pinned = false;
  bool in_memory = false;
  absl::Time create_time = {};
  absl::Time update_time = {};
  std::optional<absl::Time> expire_time = {};  // none: never
  std::vector<Message> messages = {};          // where asked for
  std::string model_fp = {};
  bool needs_migration = false;  // of another model: see Client::MigrateSession
  bool retokenized = false;      // tokens were once made anew from the text
  Durability durability = Durability::kNone;
};

struct CreateSessionOptions {
  std::string id = {};  // empty: the server makes one
  std::string system_prompt = {};
  std::optional<absl::Duration> ttl = {};  // zero: never expires
  std::string codec = {};
  std::string title = {};
  std::string remat = {};  // "resume" or "step"; empty: the server's
};

// What is changed of a session; unset: it stays.
struct SessionUpdate {
  std::optional<std::string> title = {};
  std::optional<absl::Duration> ttl = {};  // zero: never expires
};

struct MigrateResult {
  SessionInfo session = {};
  bool retokenized = false;  // by this call
  uint64_t tokens_before = 0;
  uint64_t tokens_after = 0;
  uint64_t messages_dropped = 0;
};

struct SessionList {
  std::vector<SessionInfo> sessions = {};
  std::string next_page_token = {};  // empty: the last page
};

struct FlushResult {
  uint64_t pages_written = 0;
  uint64_t bytes_written = 0;
};

const char* RoleName(Role role);
const char* FinishReasonName(FinishReason reason);
const char* DurabilityName(Durability durability);

}  // namespace xcache::client

#endif  // XCACHE_CLIENT_TYPES_H_
