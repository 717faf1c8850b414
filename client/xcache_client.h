// The C++ client of an XCache server.
//
//   auto client = Client::Connect({.address = "127.0.0.1:50051"});
//   if (!client.ok()) ...
//   auto session = (*client)->CreateSession({});
//   auto answer = (*client)->Chat(
//       {.session_id = session->id, .messages = {{Role::kUser, "Hello"}}},
//       {.on_delta = [](std::string_view text) { std::cout << text; }});
//
// Calls block. A Client is thread-safe: any number of calls may run at once.
//
// Errors are the server's canonical codes; RetryAfter() reads its hint. Calls
// that only read, and calls whose repetition changes nothing, are tried again
// a few times where the server was not reachable. A chat turn is tried again
// only where it cannot be applied twice: the server refused it unstarted (a
// full queue, with a hint), or it has `expected_turn`, and then only where no
// text of the answer has been handed out.
#ifndef XCACHE_CLIENT_XCACHE_CLIENT_H_
#define XCACHE_CLIENT_XCACHE_CLIENT_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/types.h"

namespace xcache::client {

inline constexpr char kDefaultAddress[] = "127.0.0.1:50051";

struct ClientOptions {
  std::string address = kDefaultAddress;  // host:port, or unix:/path
  std::string token = {};                 // bearer token; empty: none
  // TLS. `ca_file` is a PEM file with the roots to trust; empty: the system's.
  bool tls = false;
  std::string ca_file = {};
  std::string server_name =
      {};  // to expect in the certificate; empty: the host's
  // PEM files of a certificate to show to the server and of its private key,
  // where the server asks for one. Imply TLS.
  std::string cert_file = {};
  std::string key_file = {};
  // For each call, from its start to its end. The server stops at the next
  // step.
  absl::Duration deadline = absl::InfiniteDuration();
  int max_attempts = 3;  // of a call that may be repeated; at least 1
  // Asked at each call for the trace that it belongs to, as W3C Trace Context's
  // `traceparent` (of the span that is the thread's own, say). Where it is
  // null, or what it gives is not of that form, the call belongs to none.
  std::function<std::string()> traceparent = nullptr;
};

// Ends calls from another thread. Each call that was given the handle ends with
// CANCELLED, and so do later ones until Reset(). Thread-safe.
class CancelHandle {
 public:
  CancelHandle();
  ~CancelHandle();
  CancelHandle(const CancelHandle&) = delete;
  CancelHandle& operator=(const CancelHandle&) = delete;

  void Cancel();
  bool cancelled() const;
  void Reset();

 private:
  friend class CallScope;
  struct State;
  std::shared_ptr<State> state_;
};

// What to do while an answer streams. Callbacks run on the calling thread.
struct StreamOptions {
  std::function<void(std::string_view)> on_delta =
      {};  // whole UTF-8 characters
  std::function<void(const SampledToken&)> on_token =
      {};                          // needs params.logprobs
  CancelHandle* cancel = nullptr;  // borrowed until the call returns
  std::optional<absl::Duration> deadline = {};  // instead of the client's
};

enum class Readiness { kReady, kUnreachable, kLoading, kStopping };

// What is known of a server that is not ready.
struct Progress {
  Readiness readiness = Readiness::kUnreachable;
  absl::Duration waited = absl::ZeroDuration();
  int percent = -1;  // of what it does at the moment; -1: it does not say
  // What it does ("loading the model", ...) or, where it is unreachable, why;
  // empty: it does not say.
  std::string what = {};
};

class Connection;

class Client {
 public:
  // Does not wait for the server: see WaitReady(). InvalidArgument or NotFound
  // where an option is no good (an address that is none, a CA file that cannot
  // be read).
  static absl::StatusOr<std::unique_ptr<Client>> Connect(
      const ClientOptions& options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // One look at the server's health service.
  absl::StatusOr<Readiness> CheckReady();
  // Waits until the server serves. It may be absent or shutting down for
  // `unreachable_timeout` and load its model for `timeout`, counted together;
  // then Unavailable (FaultOf() tells why: connection_fault.h) or
  // DeadlineExceeded. `progress` is called about ten times a second, and ends
  // the wait (CANCELLED) by returning false.
  absl::Status WaitReady(
      absl::Duration timeout, absl::Duration unreachable_timeout,
      const std::function<bool(const Progress&)>& progress = nullptr);

  absl::StatusOr<Answer> Chat(const ChatRequest& request,
                              const StreamOptions& stream = {});
  absl::StatusOr<Answer> Generate(const GenerateRequest& request,
                                  const StreamOptions& stream = {});
  absl::StatusOr<Tokens> Tokenize(const std::string& text,
                                  const TokenizeOptions& options = {});
  // As the chat template renders them.
  absl::StatusOr<Tokens> TokenizeMessages(const std::vector<Message>& messages,
                                          bool add_generation_prompt);
  absl::StatusOr<Detokenized> Detokenize(const std::vector<uint32_t>& ids,
                                         bool with_special = false);
  absl::StatusOr<ScoreResult> Score(const ScoreRequest& request);
  absl::StatusOr<ModelInfo> GetModelInfo();

  absl::StatusOr<SessionInfo> CreateSession(
      const CreateSessionOptions& options);
  absl::StatusOr<SessionInfo> GetSession(const std::string& id,
                                         bool with_messages = false);
  absl::StatusOr<SessionList> ListSessions(uint32_t page_size = 0,
                                           const std::string& page_token = "");
  absl::Status DeleteSession(const std::string& id);
  // `num_messages` 0 keeps all; an empty `new_id` lets the server choose. Of
  // those messages `keep_last_messages` keeps the system prompt and the last.
  absl::StatusOr<SessionInfo> ForkSession(const std::string& id,
                                          const std::string& new_id = "",
                                          uint64_t num_messages = 0,
                                          uint64_t keep_last_messages = 0);
  // Lets a session of another model go on with the server's.
  absl::StatusOr<MigrateResult> MigrateSession(const std::string& id,
                                               const std::string& codec = "",
                                               uint64_t keep_last_messages = 0);
  // A session as a JSON document (sessions.proto), and a new session of one;
  // with an empty `id` it is called as the document says.
  absl::StatusOr<std::string> ExportSession(const std::string& id,
                                            bool text_only = false);
  absl::StatusOr<SessionInfo> ImportSession(const std::string& document,
                                            const std::string& id = "",
                                            const std::string& codec = "");
  absl::StatusOr<SessionInfo> UpdateSession(const std::string& id,
                                            const SessionUpdate& update);
  absl::StatusOr<SessionInfo> PinSession(const std::string& id);
  absl::StatusOr<SessionInfo> UnpinSession(const std::string& id);
  absl::StatusOr<FlushResult> FlushSession(const std::string& id);

 private:
  explicit Client(std::unique_ptr<Connection> connection);
  std::unique_ptr<Connection> connection_;
};

// The server's hint of when to try again; none where it gave none.
std::optional<absl::Duration> RetryAfter(const absl::Status& status);

}  // namespace xcache::client

#endif  // XCACHE_CLIENT_XCACHE_CLIENT_H_
