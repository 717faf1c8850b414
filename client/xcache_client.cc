// Long, because each call of the API is a method of the client.
#include "client/xcache_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <condition_variable>
#include <fstream>
#include <iterator>
#include <mutex>
#include <set>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/connection_fault.h"
#include "client/convert.h"
#include "client/health.h"
#include "engine/base/status_macros.h"
#include "xcache/v1/inference.grpc.pb.h"
#include "xcache/v1/sessions.grpc.pb.h"

namespace xcache::client {
namespace {

constexpr char kRetryAfterTrailer[] = "retry-after-ms";
constexpr char kRetryAfterPayload[] = "xcache/retry-after-ms";

// The canonical codes have the same numbers in gRPC and Abseil.
absl::Status ToAbslStatus(const grpc::Status& status,
                          const grpc::ClientContext& context,
                          const std::string& address) {
  if (status.ok()) return absl::OkStatus();
  absl::Status out(static_cast<absl::StatusCode>(status.error_code()),
                   status.error_message());
  const auto& trailers = context.GetServerTrailingMetadata();
  if (const auto it = trailers.find(kRetryAfterTrailer); it != trailers.end()) {
    out.SetPayload(
        kRetryAfterPayload,
        absl::Cord(absl::string_view(it->second.data(), it->second.size())));
  }
  return ExplainConnection(out, address);
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return std::string(std::istreambuf_iterator<char>(in), {});
}

// Says which session a call is of, for load balancers that keep a session with
// its server (deploy/kubernetes). An id that the server will refuse is not
// sent, as gRPC would stop at what no header may hold.
template <typename Request>
void NameSession(const Request& request, grpc::ClientContext& context) {
  std::string id;
  if constexpr (requires { request.session_id(); }) {
    id = request.session_id();
  } else if constexpr (requires { request.id(); }) {
    id = request.id();
  }
  if (!id.empty() && absl::c_all_of(id, absl::ascii_isgraph)) {
    context.AddMetadata("x-session-id", id);
  }
}

// Who may try a call again, and when.
enum class Repeat {
  kAlways,     // reads, and what changes nothing the second time
  kIfRefused,  // only where the server says that it did not start
};

// Of "host:port", also with a scheme as in "dns:///localhost:50051".
bool IsLoopback(absl::string_view address) {
  if (const size_t slash = address.rfind('/'); slash != address.npos) {
    address.remove_prefix(slash + 1);
  }
  return absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "127.") ||
         absl::StartsWith(address, "[::1]:");
}

}  // namespace

struct CancelHandle::State {
  std::mutex mutex;
  bool cancelled = false;
  std::set<grpc::ClientContext*> calls;
  std::condition_variable changed;  // also wakes the wait between attempts
};

CancelHandle::CancelHandle() : state_(std::make_shared<State>()) {}
CancelHandle::~CancelHandle() = default;

void CancelHandle::Cancel() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->cancelled = true;
  for (grpc::ClientContext* call : state_->calls) call->TryCancel();
  state_->changed.notify_all();
}

bool CancelHandle::cancelled() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->cancelled;
}

void CancelHandle::Reset() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->cancelled = false;
}

// One attempt of a call: its context, known to the cancel handle while it runs.
class CallScope {
 public:
  CallScope(const ClientOptions& options, absl::Time deadline,
            CancelHandle* cancel)
      : cancel_(cancel == nullptr ? nullptr : cancel->state_) {
    if (!options.token.empty()) {
      context_.AddMetadata("authorization",
                           absl::StrCat("Bearer ", options.token));
    }
    if (options.traceparent != nullptr) {
      // gRPC stops at what no header may hold.
      const std::string trace = options.traceparent();
      if (!trace.empty() && absl::c_all_of(trace, absl::ascii_isgraph)) {
        context_.AddMetadata("traceparent", trace);
      }
    }
    if (deadline != absl::InfiniteFuture()) {
      context_.set_deadline(absl::ToChronoTime(deadline));
    }
    if (cancel_ == nullptr) return;
    std::lock_guard<std::mutex> lock(cancel_->mutex);
    cancel_->calls.insert(&context_);
    if (cancel_->cancelled) context_.TryCancel();
  }
  ~CallScope() {
    if (cancel_ == nullptr) return;
    std::lock_guard<std::mutex> lock(cancel_->mutex);
    cancel_->calls.erase(&context_);
  }
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

  grpc::ClientContext& context() { return context_; }

  // Sleeps; false where the handle was cancelled meanwhile.
  static bool Sleep(absl::Duration duration, CancelHandle* cancel) {
    if (cancel == nullptr) {
      absl::SleepFor(duration);
      return true;
    }
    CancelHandle::State& state = *cancel->state_;
    std::unique_lock<std::mutex> lock(state.mutex);
    return !state.changed.wait_for(lock, absl::ToChronoNanoseconds(duration),
                                   [&] { return state.cancelled; });
  }

 private:
  std::shared_ptr<CancelHandle::State> cancel_;
  grpc::ClientContext context_;
};

struct Client::Impl {
  ClientOptions options;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Inference::Stub> inference;
  std::unique_ptr<v1::Sessions::Stub> sessions;

  absl::Time Deadline(std::optional<absl::Duration> own) const {
    const absl::Duration d = own.value_or(options.deadline);
    return d == absl::InfiniteDuration() ? absl::InfiniteFuture()
                                         : absl::Now() + d;
  }

  // Runs `attempt` until it succeeds, may not be repeated or has been tried
  // often enough. `begun` says whether the last attempt gave out anything.
  absl::Status WithRetries(
      Repeat repeat, absl::Time deadline, CancelHandle* cancel,
      const std::function<absl::Status(grpc::ClientContext&)>& attempt,
      const std::function<bool()>& begun = nullptr) const {
    absl::Duration backoff = absl::Milliseconds(100);
    for (int tried = 1;; ++tried) {
      absl::Status status;
      {
        CallScope scope(options, deadline, cancel);
        status = attempt(scope.context());
      }
      if (status.ok() || tried >= options.max_attempts ||
          (begun != nullptr && begun())) {
        return status;
      }
      const auto hint = RetryAfter(status);
      const bool refused = absl::IsResourceExhausted(status) && hint;
      const bool lost =
          absl::IsUnavailable(status) && repeat == Repeat::kAlways;
      if (!refused && !lost) return status;
      const absl::Duration wait = std::max(hint.value_or(backoff), backoff);
      if (absl::Now() + wait >= deadline) return status;
      if (!CallScope::Sleep(wait, cancel)) {
        return absl::CancelledError("cancelled");
      }
      backoff *= 2;
    }
  }

  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(
      Stub& stub,
      grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                   Response*),
      const Request& request, Repeat repeat) const {
    Response response;
    XC_RETURN_IF_ERROR(
        WithRetries(repeat, Deadline(std::nullopt), nullptr,
                    [&](grpc::ClientContext& context) {
                      response.Clear();
                      NameSession(request, context);
                      const grpc::Status status =
                          (stub.*method)(&context, request, &response);
                      return ToAbslStatus(status, context, options.address);
                    }));
    return response;
  }

  // One look at the server. `why` is set where it is unreachable.
  absl::StatusOr<Progress> Look(absl::Status* why) const {
    CallScope scope(options, absl::Now() + absl::Seconds(5), nullptr);
    Progress out;
    bool serving = false;
    grpc::Status status = HealthCheck(channel, scope.context(), &serving);
    if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      status = {grpc::StatusCode::UNAVAILABLE, status.error_message()};
    }
    const absl::Status explained =
        ToAbslStatus(status, scope.context(), options.address);
    if (absl::IsUnavailable(explained)) {
      *why = explained;
      out.what = std::string(explained.message());
      return out;
    }
    if (absl::IsUnimplemented(explained)) {
      return absl::UnimplementedError(absl::StrCat(
          "what listens at ", options.address,
          " is a gRPC server, but not XCache's: it has no health service"));
    }
    XC_RETURN_IF_ERROR(explained);
    out.readiness = Readiness::kReady;
    if (!serving) AskWhy(&out);
    return out;
  }

  // A server that does not serve refuses every call; while it loads, it says in
  // trailers how far it is.
  void AskWhy(Progress* progress) const {
    CallScope scope(options, absl::Now() + absl::Seconds(5), nullptr);
    v1::GetModelInfoResponse response;
    const grpc::Status status = inference->GetModelInfo(
        &scope.context(), v1::GetModelInfoRequest(), &response);
    const auto& trailers = scope.context().GetServerTrailingMetadata();
    const auto percent = trailers.find("loading-percent");
    // Without the right token it says nothing.
    progress->readiness =
        percent == trailers.end() &&
                status.error_code() == grpc::StatusCode::UNAVAILABLE
            ? Readiness::kStopping
            : Readiness::kLoading;
    if (percent != trailers.end()) {
      int value = 0;
      if (absl::SimpleAtoi(
              absl::string_view(percent->second.data(), percent->second.size()),
              &value) &&
          value >= 0 && value <= 100) {
        progress->percent = value;
      }
    }
    if (const auto it = trailers.find("loading-what"); it != trailers.end()) {
      progress->what.assign(it->second.data(), it->second.size());
    }
  }

  // One server stream of text deltas, tokens and, last, `final`.
  template <typename Response, typename Start>
  absl::StatusOr<Answer> Stream(Repeat repeat, const StreamOptions& stream,
                                const Start& start) const {
    Answer answer;
    bool begun = false;
    bool finished = false;
    const absl::Time called = absl::Now();
    XC_RETURN_IF_ERROR(WithRetries(
        repeat, Deadline(stream.deadline), stream.cancel,
        [&](grpc::ClientContext& context) {
          auto reader = start(context);
          Response response;
          while (reader->Read(&response)) {
            if (!begun) answer.client_ttft = absl::Now() - called;
            begun = true;
            for (const v1::SampledToken& token : response.logprobs()) {
              answer.tokens.push_back(FromProto(token));
              if (stream.on_token) stream.on_token(answer.tokens.back());
            }
            if (!response.delta().empty()) {
              answer.text += response.delta();
              if (stream.on_delta) stream.on_delta(response.delta());
            }
            if (response.has_final()) {
              FromProto(response.final(), &answer);
              finished = true;
            }
          }
          const grpc::Status status = reader->Finish();
          return ToAbslStatus(status, context, options.address);
        },
        [&] { return begun; }));
    if (!finished) {
      return absl::InternalError(
          "the server ended the stream without its final message");
    }
    return answer;
  }
};

std::optional<absl::Duration> RetryAfter(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryAfterPayload);
  int64_t ms = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &ms) || ms < 0) {
    return std::nullopt;
  }
  return absl::Milliseconds(ms);
}

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(
    const ClientOptions& options) {
  XC_RETURN_IF_ERROR(CheckServerAddress(options.address));
  if (options.token.find_first_of("\r\n") != std::string::npos) {
    return absl::InvalidArgumentError("the token holds a line break");
  }
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->options.max_attempts = std::max(1, options.max_attempts);
  grpc::ChannelArguments args;
  // A long history is more than gRPC's default of 4 MiB only on the way back
  // (GetSession with its messages); it is bounded by the model's context.
  args.SetMaxReceiveMessageSize(64 << 20);
  // Each client has its own connection: a restarted server is found at once
  // instead of waiting for another client's backoff.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // What gRPC gives a connection to be made, TLS included: another continent
  // or a busy machine takes its time.
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // A proxy of the environment (http_proxy) leads away from this machine.
  if (IsLoopback(options.address)) args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  if (options.cert_file.empty() != options.key_file.empty()) {
    return absl::InvalidArgumentError(
        "a certificate and its key go together: only one of them is given");
  }
  const bool tls =
      options.tls || !options.ca_file.empty() || !options.cert_file.empty();
  if (!tls && !options.server_name.empty()) {
    return absl::InvalidArgumentError(
        "a name to expect in the server's certificate needs TLS");
  }
  if (tls) {
    grpc::SslCredentialsOptions ssl;
    if (!options.cert_file.empty()) {
      XC_ASSIGN_OR_RETURN(ssl.pem_cert_chain, ReadFile(options.cert_file));
      XC_ASSIGN_OR_RETURN(ssl.pem_private_key, ReadFile(options.key_file));
    }
    if (!options.ca_file.empty()) {
      XC_ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadFile(options.ca_file));
      if (!absl::StrContains(ssl.pem_root_certs, "BEGIN CERTIFICATE")) {
        return absl::InvalidArgumentError(absl::StrCat(
            options.ca_file, " is not a PEM file with certificates"));
      }
    }
    if (!options.server_name.empty()) {
      args.SetSslTargetNameOverride(options.server_name);
    }
    credentials = grpc::SslCredentials(ssl);
  } else {
    credentials = grpc::InsecureChannelCredentials();
  }
  impl->channel = grpc::CreateCustomChannel(options.address, credentials, args);
  impl->inference = v1::Inference::NewStub(impl->channel);
  impl->sessions = v1::Sessions::NewStub(impl->channel);
  return std::unique_ptr<Client>(new Client(std::move(impl)));
}

absl::StatusOr<Readiness> Client::CheckReady() {
  absl::Status why;
  XC_ASSIGN_OR_RETURN(const Progress now, impl_->Look(&why));
  return now.readiness;
}

absl::Status Client::WaitReady(
    absl::Duration timeout, absl::Duration unreachable_timeout,
    const std::function<bool(const Progress&)>& progress) {
  const absl::Time start = absl::Now();
  constexpr absl::Duration kTick = absl::Milliseconds(100);
  while (true) {
    absl::Status why;
    XC_ASSIGN_OR_RETURN(Progress now, impl_->Look(&why));
    if (now.readiness == Readiness::kReady) return absl::OkStatus();
    now.waited = absl::Now() - start;
    if (now.waited >= unreachable_timeout) {
      if (now.readiness == Readiness::kUnreachable) return why;
      if (now.readiness == Readiness::kStopping) {
        return absl::UnavailableError(absl::StrCat(
            "the server at ", impl_->options.address, " is shutting down"));
      }
    }
    if (now.waited >= timeout) {
      return absl::DeadlineExceededError(absl::StrCat(
          "the server at ", impl_->options.address, " is not ready after ",
          absl::FormatDuration(absl::Trunc(now.waited, kTick))));
    }
    if (progress != nullptr && !progress(now)) {
      return absl::CancelledError("cancelled");
    }
    absl::SleepFor(kTick);
  }
}

absl::StatusOr<Answer> Client::Chat(const ChatRequest& request,
                                    const StreamOptions& stream) {
  const v1::ChatRequest proto = ToProto(request);
  // Without a session a repeated turn changes nothing either.
  const Repeat repeat = request.expected_turn || request.session_id.empty()
                            ? Repeat::kAlways
                            : Repeat::kIfRefused;
  return impl_->Stream<v1::ChatResponse>(
      repeat, stream, [&](grpc::ClientContext& context) {
        NameSession(proto, context);
        return impl_->inference->Chat(&context, proto);
      });
}

absl::StatusOr<Answer> Client::Generate(const GenerateRequest& request,
                                        const StreamOptions& stream) {
  const v1::GenerateRequest proto = ToProto(request);
  return impl_->Stream<v1::GenerateResponse>(
      Repeat::kAlways, stream, [&](grpc::ClientContext& context) {
        return impl_->inference->Generate(&context, proto);
      });
}

absl::StatusOr<Tokens> Client::Tokenize(const std::string& text,
                                        const TokenizeOptions& options) {
  v1::TokenizeRequest request;
  request.set_text(text);
  request.set_parse_special(options.parse_special);
  request.set_add_bos(options.add_bos);
  XC_ASSIGN_OR_RETURN(
      const v1::TokenizeResponse response,
      impl_->Call(*impl_->inference, &v1::Inference::Stub::Tokenize, request,
                  Repeat::kAlways));
  return FromProto(response);
}

absl::StatusOr<Tokens> Client::TokenizeMessages(
    const std::vector<Message>& messages, bool add_generation_prompt) {
  v1::TokenizeRequest request;
  for (const Message& message : messages) {
    ToProto(message, request.mutable_messages()->add_messages());
  }
  request.mutable_messages()->set_add_generation_prompt(add_generation_prompt);
  XC_ASSIGN_OR_RETURN(
      const v1::TokenizeResponse response,
      impl_->Call(*impl_->inference, &v1::Inference::Stub::Tokenize, request,
                  Repeat::kAlways));
  return FromProto(response);
}

absl::StatusOr<Detokenized> Client::Detokenize(const std::vector<uint32_t>& ids,
                                               bool with_special) {
  v1::DetokenizeRequest request;
  request.mutable_token_ids()->Add(ids.begin(), ids.end());
  request.set_with_special(with_special);
  XC_ASSIGN_OR_RETURN(
      const v1::DetokenizeResponse response,
      impl_->Call(*impl_->inference, &v1::Inference::Stub::Detokenize, request,
                  Repeat::kAlways));
  return Detokenized{response.text(), response.bytes()};
}

absl::StatusOr<ScoreResult> Client::Score(const ScoreRequest& request) {
  XC_ASSIGN_OR_RETURN(
      const v1::ScoreResponse response,
      impl_->Call(*impl_->inference, &v1::Inference::Stub::Score,
                  ToProto(request), Repeat::kAlways));
  return FromProto(response);
}

absl::StatusOr<ModelInfo> Client::GetModelInfo() {
  XC_ASSIGN_OR_RETURN(
      const v1::GetModelInfoResponse response,
      impl_->Call(*impl_->inference, &v1::Inference::Stub::GetModelInfo,
                  v1::GetModelInfoRequest(), Repeat::kAlways));
  return FromProto(response);
}

absl::StatusOr<SessionInfo> Client::CreateSession(
    const CreateSessionOptions& options) {
  // Twice would make two sessions, or an ALREADY_EXISTS of its own making.
  XC_ASSIGN_OR_RETURN(
      const v1::Session session,
      impl_->Call(*impl_->sessions, &v1::Sessions::Stub::CreateSession,
                  ToProto(options), Repeat::kIfRefused));
  return FromProto(session);
}

absl::StatusOr<SessionInfo> Client::GetSession(const std::string& id,
                                               bool with_messages) {
  v1::GetSessionRequest request;
  request.set_id(id);
  request.set_with_messages(with_messages);
  XC_ASSIGN_OR_RETURN(
      const v1::Session session,
      impl_->Call(*impl_->sessions, &v1::Sessions::Stub::GetSession, request,
                  Repeat::kAlways));
  return FromProto(session);
}

absl::StatusOr<SessionList> Client::ListSessions(
    uint32_t page_size, const std::string& page_token) {
  v1::ListSessionsRequest request;
  request.set_page_size(page_size);
  request.set_page_token(page_token);
  XC_ASSIGN_OR_RETURN(
      const v1::ListSessionsResponse response,
      impl_->Call(*impl_->sessions, &v1::Sessions::Stub::ListSessions, request,
                  Repeat::kAlways));
  SessionList list;
  for (const v1::Session& session : response.sessions()) {
    list.sessions.push_back(FromProto(session));
  }
  list.next_page_token = response.next_page_token();
  return list;
}

absl::Status Client::DeleteSession(const std::string& id) {
  v1::DeleteSessionRequest request;
  request.set_id(id);
  return impl_
      ->Call(*impl_->sessions, &v1::Sessions::Stub::DeleteSession, request,
             Repeat::kIfRefused)
      .status();
}

absl::StatusOr<SessionInfo> Client::ForkSession(const std::string& id,
                                                const std::string& new_id,
                                                uint64_t num_messages,
                                                uint64_t keep_last_messages) {
  v1::ForkSessionRequest request;
  request.set_id(id);
  request.set_new_id(new_id);
  request.set_num_messages(num_messages);
  request.set_keep_last_messages(keep_last_messages);
  XC_ASSIGN_OR_RETURN(
      const v1::Session session,
      impl_->Call(*impl_->sessions, &v1::Sessions::Stub::ForkSession, request,
                  Repeat::kIfRefused));
  return FromProto(session);
}

absl::StatusOr<MigrateResult> Client::MigrateSession(
    const std::string& id, const std::string& codec,
    uint64_t keep_last_messages) {
  v1::MigrateSessionRequest request;
  request.set_id(id);
  request.set_codec(codec);
  request.set_keep_last_messages(keep_last_messages);
  XC_ASSIGN_OR_RETURN(
      const v1::MigrateSessionResponse response,
      impl_->Call(*impl_->sessions, &v1::Sessions::Stub::MigrateSession,
                  request, Repeat::kAlways));
  return MigrateResult{.session = FromProto(response.session()),
                       .retokenized = response.retokenized(),
                       .tokens_before = response.tokens_before(),
                       .tokens_after = response.tokens_after(),
                       .messages_dropped = response.messages_dropped()};
}

absl::StatusOr<std::string> Client::ExportSession(const std::string& id,
                                                  bool text_only) {
  v1::ExportSessionRequest request;
  request.set_id(id);
  request.set_text_only(text_only);
  XC_ASSIGN_OR_RETURN(
      v1::ExportSessionResponse response,
      impl_->Call(*impl_->sessions, &v1::Sessions::Stub::ExportSession, request,
                  Repeat::kAlways));
  return std::move(*response.mutable_document());
}

absl::StatusOr<SessionInfo> Client::ImportSession(const std::string& document,
                                                  const std::string& id,
                                                  const std::string& codec) {
  v1::ImportSessionRequest request;
  request.set_document(document);
  request.set_id(id);
  request.set_codec(codec);
  // Twice would be an ALREADY_EXISTS of its own making.
  XC_ASSIGN_OR_RETURN(
      const v1::Session session,
      impl_->Call(*impl_->sessions, &v1::Sessions::Stub::ImportSession, request,
                  Repeat::kIfRefused));
  return FromProto(session);
}

absl::StatusOr<SessionInfo> Client::UpdateSession(const std::string& id,
                                                  const SessionUpdate& update) {
  XC_ASSIGN_OR_RETURN(
      const v1::Session session,
      impl_->Call(*impl_->sessions, &v1::Sessions::Stub::UpdateSession,
                  ToProto(id, update), Repeat::kAlways));
  return FromProto(session);
}

absl::StatusOr<SessionInfo> Client::PinSession(const std::string& id) {
  v1::PinSessionRequest request;
  request.set_id(id);
  XC_ASSIGN_OR_RETURN(
      const v1::Session session,
      impl_->Call(*impl_->sessions, &v1::Sessions::Stub::PinSession, request,
                  Repeat::kAlways));
  return FromProto(session);
}

absl::StatusOr<SessionInfo> Client::UnpinSession(const std::string& id) {
  v1::UnpinSessionRequest request;
  request.set_id(id);
  XC_ASSIGN_OR_RETURN(
      const v1::Session session,
      impl_->Call(*impl_->sessions, &v1::Sessions::Stub::UnpinSession, request,
                  Repeat::kAlways));
  return FromProto(session);
}

absl::StatusOr<FlushResult> Client::FlushSession(const std::string& id) {
  v1::FlushSessionRequest request;
  request.set_id(id);
  XC_ASSIGN_OR_RETURN(
      const v1::FlushSessionResponse response,
      impl_->Call(*impl_->sessions, &v1::Sessions::Stub::FlushSession, request,
                  Repeat::kAlways));
  return FlushResult{response.pages_written(), response.bytes_written()};
}

}  // namespace xcache::client
