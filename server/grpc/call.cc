#include "server/grpc/call.h"

#include <optional>
#include <utility>

#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "server/frontend/utf8.h"
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

// For the log: UTF-8 without control characters, which a terminal would obey.
std::string Loggable(std::string_view text) {
  std::string out = ToUtf8(text);
  for (char& c : out) {
    if ((c >= 0 && c < ' ') || c == 0x7f) c = '?';
  }
  return LogValue(out);
}

}  // namespace

SteadyTime ToSteady(std::chrono::system_clock::time_point deadline,
                    std::chrono::system_clock::time_point system_now,
                    SteadyTime steady_now) {
  // Beyond a year is no deadline, and would overflow further on.
  if (deadline > system_now + std::chrono::hours(24 * 365)) {
    return SteadyTime::max();
  }
  return steady_now + std::chrono::duration_cast<SteadyTime::duration>(
                          deadline - system_now);
}

bool AtDeadline(SteadyTime start, SteadyTime deadline, SteadyTime now) {
  if (deadline == SteadyTime::max()) return false;
  const SteadyTime::duration early =
      (deadline - start) / 100 + std::chrono::milliseconds(1);
  return now >= deadline - early;
}

Call::Call(const ServiceDeps& deps, Method method,
           grpc::CallbackServerContext* context)
    : deps_(deps),
      method_(method),
      context_(context),
      start_(std::chrono::steady_clock::now()),
      deadline_(ToSteady(context->deadline(), std::chrono::system_clock::now(),
                         start_)) {}

absl::Status Call::Admit() {
  const std::optional<std::string_view> header = Authorization(*context_);
  XC_ASSIGN_OR_RETURN(tenant_,
                      deps_.auth->Authenticate(header ? &*header : nullptr));
  XC_ASSIGN_OR_RETURN(core_, deps_.gate->Enter());
  return absl::OkStatus();
}

bool Call::Start(std::function<void()> body, const RefuseFn& refuse) {
  if (absl::Status status = Admit(); !status.ok()) {
    refuse(status, 0);
    return false;
  }
  if (!deps_.workers->Submit(std::move(body))) {
    refuse(absl::ResourceExhaustedError("too many requests at once"),
           kBusyRetryMs);
    return false;
  }
  return true;
}

void Call::SetBase(const std::shared_ptr<Cancellation>& cancellation,
                   RequestBase* base) const {
  base->tenant = tenant_;
  base->deadline = deadline_;
  base->cancellation = cancellation;
}

grpc::Status Call::Close(absl::Status status, int64_t retry_after_ms,
                         std::string_view details) {
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
  const double seconds = std::chrono::duration<double>(now - start_).count();
  deps_.metrics->CountRequest(method_, status.code(), seconds);
  const std::string error =
      status.ok()
          ? ""
          : " error=" +
                Loggable({status.message().data(), status.message().size()});
  XC_LOG_INFO("request", "method={} code={} tenant={} ms={:.1f} peer={}{}{}",
              MethodName(method_), CodeName(status.code()),
              LogValue(tenant_.empty() ? "-" : tenant_), seconds * 1e3,
              LogValue(context_->peer()), details, error);
  return ToGrpcStatus(status);
}

}  // namespace xcache
