// The server without its wire: requests and sessions in, text and tokens out.
// Continuous batching, prefix reuse and durable sessions live behind this one
// class; gRPC, protobuf and Prometheus do not.
//
// Threads: one scheduler thread owns the engine; committers make turns
// durable; a few loaders read pages. All methods are thread-safe. Submit* read
// a session's record at most, and tokenize; the session methods may wait for
// the disk to sync.
#ifndef XCACHE_SERVER_CORE_SERVER_CORE_H_
#define XCACHE_SERVER_CORE_SERVER_CORE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/model/chat_template.h"
#include "engine/model/tokenizer.h"
#include "server/core/core_metrics.h"
#include "server/core/core_options.h"
#include "server/core/request.h"

namespace xcache {

inline constexpr size_t kMaxSessionDataBytes = size_t{64} << 10;

// A session as others see it. Times are microseconds of the Unix epoch.
struct SessionInfo {
  std::string id;
  uint64_t turn = 0;
  uint64_t num_tokens = 0;
  uint64_t num_messages = 0;
  std::string codec;
  bool pinned = false;
  int64_t create_time_us = 0;
  int64_t update_time_us = 0;
  int64_t expire_time_us = 0;  // 0: never
  uint64_t num_pages = 0;
  uint64_t page_bytes = 0;
  bool in_memory = false;
  std::vector<ChatMessage> messages;  // where they were asked for
  std::vector<AnswerNote> answers;    // the same, of those that have one
  std::string data;                   // the caller's own; empty in a list
  std::string title;
  std::string remat;  // "resume" or "step"; empty in a list
  Digest model_fp{};  // of the model whose tokens it holds
  // Of another model than this server's, or, where it is known (not in a list),
  // of another form of its codec: shown and deleted as any, continued after
  // MigrateSession only.
  bool needs_migration = false;
  // Answers' tokens were once made anew from their text: not in a list.
  bool retokenized = false;
  Durability durability = Durability::kNone;  // of its latest state
};

struct CreateSessionOptions {
  std::string tenant;
  std::string id;                     // empty: made
  std::string system_prompt;          // empty: the template's default, if any
  std::vector<ChatMessage> messages;  // that it begins with, after that
  std::optional<std::chrono::milliseconds> ttl;  // unset: default; 0: never
  std::string codec;  // spec or name of a quality; empty: the default
  std::string title;
  std::string remat;  // "resume" or "step"; empty: the default
  std::string data;   // at most kMaxSessionDataBytes
};

struct ForkOptions {
  std::string tenant;
  std::string id;
  std::string new_id;         // empty: made
  uint64_t num_messages = 0;  // the first so many; 0: all
  // Of those the system prompt and the last so many, from a user's message on;
  // 0: all.
  uint64_t keep_last_messages = 0;
};

struct MigrateOptions {
  std::string tenant;
  std::string id;
  // Spec or name of a quality. Empty: its own where it is of this model
  // already, else the default.
  std::string codec;
  uint64_t keep_last_messages = 0;  // as in ForkOptions
};

struct MigrateResult {
  SessionInfo session;
  bool retokenized = false;  // by this call
  uint64_t tokens_before = 0;
  uint64_t tokens_after = 0;
  uint64_t messages_dropped = 0;
};

struct ImportOptions {
  std::string tenant;
  std::string document;
  std::string id;  // empty: the document's, or made where that has none
  // Spec or name of a quality. Empty: the document's where it is of this model,
  // else the default.
  std::string codec;
};

struct SessionList {
  std::vector<SessionInfo> sessions;  // most recently used first
  std::string next_page_token;        // empty: the last page
};

struct FlushResult {
  uint64_t pages_written = 0;
  uint64_t bytes_written = 0;
};

class ServerCore {
 public:
  // Opens the default codec (which may make a profile: `progress`), reads every
  // session's manifest, sweeps orphaned pages, starts the threads.
  static absl::StatusOr<std::unique_ptr<ServerCore>> Create(
      const ServerCoreDeps& deps, const ServerCoreOptions& options,
      const ProgressFn& progress);
  // Cancels what runs (UNAVAILABLE), finishes commits under way, stops.
  virtual ~ServerCore() = default;

  // Requests. `sink` gets exactly one OnFinish, also for a request that is
  // refused at once (then before Submit returns, on the caller's thread):
  //   INVALID_ARGUMENT     parameters, roles, context too long (both numbers)
  //   NOT_FOUND            unknown session, or another tenant's; no answer of
  //                        the note ChatTurn::after
  //   ABORTED              another turn at once, or `expected_turn` differs, or
  //                        something comes after the answer `after`
  //   FAILED_PRECONDITION  the session is of another model or codec (see
  //                        MigrateSession); no template
  //   DATA_LOSS            the session's record is corrupt
  //   RESOURCE_EXHAUSTED   queue full or no memory; final.retry_after_ms
  //   UNAVAILABLE          draining
  //   CANCELLED, DEADLINE_EXCEEDED
  // A turn that does not finish OK leaves its session as it was, but for what
  // ChatTurn::keep_partial keeps.
  virtual void SubmitChat(ChatTurn turn, std::shared_ptr<RequestSink> sink) = 0;
  virtual void SubmitGenerate(GenerateRequest request,
                              std::shared_ptr<RequestSink> sink) = 0;
  virtual void SubmitScore(ScoreRequest request,
                           std::shared_ptr<RequestSink> sink) = 0;
  // Knows no page, and keeps none.
  virtual void SubmitEmbed(EmbedRequest request,
                           std::shared_ptr<RequestSink> sink) = 0;

  // Sessions, of this model or another. NOT_FOUND also for another tenant's;
  // INVALID_ARGUMENT: an argument out of its limits. What they change is synced
  // before they return, or kept in memory where the disk does not take it:
  // SessionInfo::durability.
  virtual absl::StatusOr<SessionInfo> CreateSession(
      const CreateSessionOptions& options) = 0;
  virtual absl::StatusOr<SessionInfo> GetSession(std::string_view tenant,
                                                 std::string_view id,
                                                 bool with_messages) = 0;
  // `page_size` 0: 50; at most 1000. `page_token`: of the page before.
  virtual absl::StatusOr<SessionList> ListSessions(
      std::string_view tenant, int page_size, std::string_view page_token) = 0;
  // A turn that runs on it is cancelled.
  virtual absl::Status DeleteSession(std::string_view tenant,
                                     std::string_view id) = 0;
  // Erases an answer's note. `cut`: and the messages that no answer with a note
  // needs any more; with the last of these the session. NOT_FOUND also where
  // the session has no such note. Also while a turn runs.
  virtual absl::Status ForgetAnswer(std::string_view tenant,
                                    std::string_view id, std::string_view name,
                                    bool cut) = 0;
  // FAILED_PRECONDITION: `keep_last_messages` of another model's session.
  virtual absl::StatusOr<SessionInfo> ForkSession(
      const ForkOptions& options) = 0;
  // Makes a session one of this server's model and of a codec, in place: id,
  // title, times, messages and turns stay, pages are made anew by its next
  // turn. Where it is all that already nothing changes. INVALID_ARGUMENT: the
  // conversation is too long for this context (both numbers);
  // FAILED_PRECONDITION: it does not fit the model's chat template; ABORTED: a
  // turn runs on it.
  virtual absl::StatusOr<MigrateResult> MigrateSession(
      const MigrateOptions& options) = 0;
  // A session of whatever model as a JSON document (sessions/document.h).
  // `text_only`: without its tokens.
  virtual absl::StatusOr<std::string> ExportSession(std::string_view tenant,
                                                    std::string_view id,
                                                    bool text_only) = 0;
  // A new session of a document, token for token where that has the tokens of
  // this model; else its text is tokenized anew (SessionInfo::retokenized).
  // ALREADY_EXISTS; INVALID_ARGUMENT: what is wrong with the document, roles
  // that the model's template does not take, or too long (both numbers).
  virtual absl::StatusOr<SessionInfo> ImportSession(
      const ImportOptions& options) = 0;
  // Also while a turn runs.
  virtual absl::StatusOr<SessionInfo> UpdateSession(
      std::string_view tenant, std::string_view id,
      const SessionUpdate& update) = 0;
  // ABORTED while a turn runs on it.
  virtual absl::StatusOr<FlushResult> FlushSession(std::string_view tenant,
                                                   std::string_view id) = 0;

  // Tokens of a conversation, as Chat would make them.
  virtual absl::StatusOr<std::vector<TokenId>> RenderChat(
      const std::vector<ChatMessage>& messages,
      bool add_generation_prompt) const = 0;

  virtual const ModelInfo& model() const = 0;
  virtual const CodecHandle& default_codec() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  virtual const ChatTemplate* chat_template() const = 0;
  virtual int64_t max_context() const = 0;

  // Refuses new requests from now on (UNAVAILABLE), waits until those there are
  // have finished, at `deadline` ends the rest (UNAVAILABLE), then writes what
  // is written behind. Returns how many were ended.
  virtual int Drain(SteadyTime deadline) = 0;

  virtual CoreGauges Snapshot() const = 0;

 protected:
  ServerCore() = default;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SERVER_CORE_H_
