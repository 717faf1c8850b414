#include "client/connection.h"

#include <algorithm>
#include <condition_variable>
#include <fstream>
#include <iterator>
#include <mutex>
#include <set>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/connection_fault.h"
#include "client/health.h"

namespace xcache::client {
namespace {

constexpr char kRetryAfterTrailer[] = "retry-after-ms";
constexpr char kRetryAfterPayload[] = "xcache/retry-after-ms";

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return std::string(std::istreambuf_iterator<char>(in), {});
}

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

std::optional<absl::Duration> RetryAfter(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryAfterPayload);
  int64_t ms = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &ms) || ms < 0) {
    return std::nullopt;
  }
  return absl::Milliseconds(ms);
}

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(
    const ClientOptions& options) {
  XC_RETURN_IF_ERROR(CheckServerAddress(options.address));
  if (options.token.find_first_of("\r\n") != std::string::npos) {
    return absl::InvalidArgumentError("the token holds a line break");
  }
  std::unique_ptr<Connection> out(new Connection(options));
  out->options_.max_attempts = std::max(1, options.max_attempts);
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
  out->channel_ = grpc::CreateCustomChannel(options.address, credentials, args);
  out->inference_ = v1::Inference::NewStub(out->channel_);
  out->sessions_ = v1::Sessions::NewStub(out->channel_);
  return out;
}

// The canonical codes have the same numbers in gRPC and Abseil.
absl::Status Connection::Explain(const grpc::Status& status,
                                 const grpc::ClientContext& context) const {
  if (status.ok()) return absl::OkStatus();
  absl::Status out(static_cast<absl::StatusCode>(status.error_code()),
                   status.error_message());
  const auto& trailers = context.GetServerTrailingMetadata();
  if (const auto it = trailers.find(kRetryAfterTrailer); it != trailers.end()) {
    out.SetPayload(
        kRetryAfterPayload,
        absl::Cord(absl::string_view(it->second.data(), it->second.size())));
  }
  return ExplainConnection(out, options_.address);
}

absl::Time Connection::Deadline(std::optional<absl::Duration> own) const {
  const absl::Duration d = own.value_or(options_.deadline);
  return d == absl::InfiniteDuration() ? absl::InfiniteFuture()
                                       : absl::Now() + d;
}

absl::Status Connection::WithRetries(
    Repeat repeat, absl::Time deadline, CancelHandle* cancel,
    const std::function<absl::Status(grpc::ClientContext&)>& attempt,
    const std::function<bool()>& begun) const {
  absl::Duration backoff = absl::Milliseconds(100);
  for (int tried = 1;; ++tried) {
    absl::Status status;
    {
      CallScope scope(options_, deadline, cancel);
      status = attempt(scope.context());
    }
    if (status.ok() || tried >= options_.max_attempts ||
        (begun != nullptr && begun())) {
      return status;
    }
    const auto hint = RetryAfter(status);
    const bool refused = absl::IsResourceExhausted(status) && hint;
    const bool lost = absl::IsUnavailable(status) && repeat == Repeat::kAlways;
    if (!refused && !lost) return status;
    const absl::Duration wait = std::max(hint.value_or(backoff), backoff);
    if (absl::Now() + wait >= deadline) return status;
    if (!CallScope::Sleep(wait, cancel)) {
      return absl::CancelledError("cancelled");
    }
    backoff *= 2;
  }
}

absl::StatusOr<Progress> Connection::Look(absl::Status* why) const {
  CallScope scope(options_, absl::Now() + absl::Seconds(5), nullptr);
  Progress out;
  bool serving = false;
  grpc::Status status = HealthCheck(channel_, scope.context(), &serving);
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    status = {grpc::StatusCode::UNAVAILABLE, status.error_message()};
  }
  const absl::Status explained = Explain(status, scope.context());
  if (absl::IsUnavailable(explained)) {
    *why = explained;
    out.what = std::string(explained.message());
    return out;
  }
  if (absl::IsUnimplemented(explained)) {
    return absl::UnimplementedError(absl::StrCat(
        "what listens at ", options_.address,
        " is a gRPC server, but not XCache's: it has no health service"));
  }
  XC_RETURN_IF_ERROR(explained);
  out.readiness = Readiness::kReady;
  if (!serving) AskWhy(&out);
  return out;
}

// A server that does not serve refuses every call; while it loads, it says in
// trailers how far it is.
void Connection::AskWhy(Progress* progress) const {
  CallScope scope(options_, absl::Now() + absl::Seconds(5), nullptr);
  v1::GetModelInfoResponse response;
  const grpc::Status status = inference_->GetModelInfo(
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

}  // namespace xcache::client
