#include "server/grpc/call.h"

#include <optional>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/log.h"
#include "engine/base/sha256.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "server/core/reason.h"
#include "server/core/tenants/take.h"
#include "server/grpc/credentials.h"
#include "server/grpc/status.h"

namespace xcache {
namespace {

// Loading takes seconds and a restart not much longer: often enough to be
// there soon, seldom enough not to be a burden.
constexpr int64_t kUnavailableRetryMs = 1000;
// As long as a busy moment lasts.
constexpr int64_t kBusyRetryMs = 1000;

std::optional<std::string_view> Authorization(
    const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find("authorization");
  if (found == metadata.end()) return std::nullopt;
  return std::string_view(found->second.data(), found->second.size());
}

// What gRPC takes as a header's value: it aborts on anything else.
std::string Printable(std::string_view text) {
  std::string out;
  for (char c : text.substr(0, 200)) out += c >= ' ' && c <= '~' ? c : '?';
  return out;
}

// For the log: UTF-8.
std::string Loggable(std::string_view text) { return LogValue(ToUtf8(text)); }

constexpr char kRequestIdHeader[] = "x-request-id";
constexpr size_t kMaxLoggedIdBytes = 128;

// The client's own, or one that we make up: 64 random bits.
std::string RequestId(const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(kRequestIdHeader);
  if (found != metadata.end()) {
    return Printable({found->second.data(),
                      std::min(found->second.size(), kMaxLoggedIdBytes)});
  }
  static thread_local absl::BitGen random;
  return absl::StrCat(
      absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16));
}

// A call that names two traces is of neither.
std::optional<TraceContext> TraceOf(
    const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(kTraceparentHeader);
  if (found == metadata.end() || metadata.count(kTraceparentHeader) != 1) {
    return std::nullopt;
  }
  return ParseTraceparent({found->second.data(), found->second.size()});
}

// The same for one session, and no name: what a tenant calls it may say whose
// it is.
std::string SessionHash(const std::string& tenant, const std::string& session) {
  return ToHex(Sha256Of(absl::StrCat(tenant, "/", session))).substr(0, 16);
}

// The session that a request of any of our methods names, or "".
std::string SessionOf(const google::protobuf::Message& request) {
  for (const char* name : {"session_id", "id"}) {
    const google::protobuf::FieldDescriptor* field =
        request.GetDescriptor()->FindFieldByName(name);
    if (field != nullptr && !field->is_repeated() &&
        field->type() == google::protobuf::FieldDescriptor::TYPE_STRING) {
      return request.GetReflection()
          ->GetString(request, field)
          .substr(0, kMaxLoggedIdBytes);
    }
  }
  return "";
}

// What a tenant's limit on requests counts: the other methods are over soon.
bool TakesTheEngine(Method method) {
  return method == Method::kChat || method == Method::kGenerate ||
         method == Method::kScore;
}

// A request is there twice while it is worked on: as it came, and as the core
// takes it.
constexpr int64_t kCopies = 2;

}  // namespace

std::string PeerAddress(std::string_view grpc_peer) {
  const size_t scheme = grpc_peer.find(':');
  if (scheme != grpc_peer.npos) grpc_peer.remove_prefix(scheme + 1);
  std::string out(grpc_peer.data(), grpc_peer.size());
  absl::StrReplaceAll({{"%5B", "["}, {"%5D", "]"}, {"%25", "%"}}, &out);
  return out;
}

SteadyTime ToSteady(gpr_timespec deadline, gpr_timespec now,
                    SteadyTime steady_now) {
  const gpr_timespec left = gpr_time_sub(deadline, now);
  // Beyond a year is no deadline, and would overflow further on.
  constexpr int64_t kYear = int64_t{365} * 24 * 3600;
  if (left.tv_sec > kYear) return SteadyTime::max();
  return steady_now + std::chrono::seconds(left.tv_sec) +
         std::chrono::nanoseconds(left.tv_nsec);
}

bool AtDeadline(SteadyTime start, SteadyTime deadline, SteadyTime now) {
  if (deadline == SteadyTime::max()) return false;
  const SteadyTime::duration early =
      (deadline - start) / 100 + std::chrono::milliseconds(1);
  return now >= deadline - early;
}

Call::Call(const ServiceDeps& deps, Method method,
           grpc::CallbackServerContext* context,
           const google::protobuf::Message& request)
    : deps_(deps),
      method_(method),
      context_(context),
      request_(request),
      start_(std::chrono::steady_clock::now()),
      deadline_(ToSteady(context->raw_deadline(),
                         gpr_now(context->raw_deadline().clock_type), start_)),
      request_id_(RequestId(*context)),
      trace_(TraceOf(*context)) {}

absl::Status Call::Admit() {
  const std::string peer = PeerAddress(context_->peer());
  deps_.floods->Arrive(ConnectionOf(*context_), peer);
  const std::optional<std::string_view> header = Authorization(*context_);
  XC_ASSIGN_OR_RETURN(tenant_,
                      deps_.auth->Authenticate(header ? &*header : nullptr));
  deps_.listener->MarkTrusted(peer);
  XC_ASSIGN_OR_RETURN(core_, deps_.gate->Enter());
  if (TakesTheEngine(method_)) {
    XC_ASSIGN_OR_RETURN(
        place_, Take(deps_.tenants, tenant_, TenantLimit::kRequests, 1));
  }
  const auto bytes = static_cast<int64_t>(request_.SpaceUsedLong()) * kCopies;
  if (bytes > deps_.request_bytes->limit()) {
    return WithReason(
        absl::InvalidArgumentError(absl::StrCat(
            "the request takes ", bytes,
            " bytes of memory, and all requests together may take ",
            deps_.request_bytes->limit())),
        Reason::kRequestTooLarge);
  }
  const bool several = deps_.tenants != nullptr && deps_.tenants->has_several();
  auto held = deps_.request_bytes->Hold(
      bytes, several ? std::string_view(tenant_) : std::string_view());
  if (!held.has_value()) {
    return WithReason(absl::ResourceExhaustedError(absl::StrCat(
                          "the requests that are worked on hold the ",
                          deps_.request_bytes->limit(),
                          " bytes that are set aside for them, or this "
                          "tenant's part of them")),
                      Reason::kOutOfMemory);
  }
  held_ = *std::move(held);
  return absl::OkStatus();
}

WorkClass Call::work_class() const {
  switch (method_) {
    case Method::kChat:
    case Method::kGenerate:
    case Method::kTokenize:
    case Method::kDetokenize:
    case Method::kScore:
    case Method::kImportSession:
      return request_.ByteSizeLong() > kLargeTextBytes ? WorkClass::kLargeText
                                                       : WorkClass::kText;
    case Method::kMigrateSession:  // a whole conversation
      return WorkClass::kLargeText;
    case Method::kGetSession:
    case Method::kGetModelInfo:
      return WorkClass::kLookup;
    default:
      return WorkClass::kStore;
  }
}

void Call::Start(std::function<void()> body, const RefuseFn& refuse) {
  if (absl::Status status = Admit(); !status.ok()) {
    refuse(status, absl::IsResourceExhausted(status)
                       ? RetryAfterOf(status).value_or(kBusyRetryMs)
                       : 0);
    return;
  }
  auto task = [this, refuse, body = std::move(body)] {
    // Nobody waits for it any more: not worth beginning.
    if (context_->IsCancelled()) {
      refuse(absl::CancelledError("cancelled before it was begun"), 0);
    } else if (std::chrono::steady_clock::now() >= deadline_) {
      refuse(absl::DeadlineExceededError(
                 "the request's deadline passed before it was begun"),
             0);
    } else {
      body();
    }
  };
  if (!deps_.workers->Submit(work_class(), tenant_, std::move(task))) {
    refuse(WithReason(absl::ResourceExhaustedError("too many requests at once"),
                      Reason::kQueueFull),
           kBusyRetryMs);
  }
}

std::string Call::DescribeRequest() const {
  std::string out = absl::StrCat(" request_id=", LogValue(request_id_));
  if (trace_.has_value()) {
    absl::StrAppend(&out, " trace_id=", LogValue(trace_->trace_id),
                    " span_id=", LogValue(trace_->span_id));
  }
  return out;
}

std::string Call::DescribeIds() const {
  std::string out = DescribeRequest();
  if (const std::string session = SessionOf(request_); !session.empty()) {
    absl::StrAppend(&out, " session=", Loggable(session));
    if (!tenant_.empty()) {
      absl::StrAppend(
          &out, " session_hash=", LogValue(SessionHash(tenant_, session)));
    }
  }
  return out;
}

void Call::SetBase(const std::shared_ptr<Cancellation>& cancellation,
                   RequestBase* base) const {
  base->tenant = tenant_;
  base->deadline = deadline_;
  base->cancellation = cancellation;
  base->log_ids = DescribeRequest();
}

grpc::Status Call::Close(absl::Status status, int64_t retry_after_ms,
                         std::string_view details) {
  // Before the client hears of it, who may come with the next one at once.
  place_ = TenantHold();
  const auto now = std::chrono::steady_clock::now();
  // gRPC cancels a call at its deadline: say which of the two it was.
  if (status.code() == absl::StatusCode::kCancelled &&
      AtDeadline(start_, deadline_, now)) {
    status = absl::DeadlineExceededError("the request's deadline has passed");
  }
  if (status.code() == absl::StatusCode::kUnavailable) {
    if (retry_after_ms == 0) retry_after_ms = kUnavailableRetryMs;
    if (const ReadinessGate::Progress progress = deps_.gate->progress();
        progress.loading) {
      context_->AddTrailingMetadata(kLoadingPercentTrailer,
                                    std::to_string(progress.percent));
      context_->AddTrailingMetadata(kLoadingWhatTrailer,
                                    Printable(progress.what));
    }
  }
  AddRetryAfter(*context_, retry_after_ms);
  context_->AddTrailingMetadata(kRequestIdHeader, request_id_);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  // That is how a client asks whether loading is through: an answer, and no
  // failure.
  const bool poll = method_ == Method::kGetModelInfo && !status.ok() &&
                    ReasonOf(status).id == Reason::kLoading;
  if (!poll) deps_.metrics->CountRequest(method_, status.code(), seconds);
  spdlog::log(
      poll ? spdlog::level::debug : spdlog::level::info,
      "request method={} code={} tenant={} ms={:.1f} peer={}{}{}{}",
      MethodName(method_), CodeName(status.code()),
      LogValue(tenant_.empty() ? "-" : tenant_), seconds * 1e3,
      LogValue(context_->peer()), DescribeIds(), details,
      status.ok()
          ? ""
          : absl::StrCat(
                " reason=", std::string(ReasonOf(status).name), " error=",
                Loggable({status.message().data(), status.message().size()})));
  return ToGrpcStatus(status, retry_after_ms);
}

}  // namespace xcache
