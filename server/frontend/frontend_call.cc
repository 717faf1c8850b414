#include "server/frontend/frontend_call.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/sha256.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "server/core/reason.h"
#include "server/core/tenants/take.h"

namespace xcache {
namespace {

// Loading takes seconds and a restart not much longer: often enough to be
// there soon, seldom enough not to be a burden.
constexpr int64_t kUnavailableRetryMs = 1000;
// As long as a busy moment lasts.
constexpr int64_t kBusyRetryMs = 1000;

constexpr size_t kMaxLoggedIdBytes = 128;
constexpr size_t kMaxHeaderValueBytes = 200;

std::string RequestId(const std::optional<std::string>& given) {
  if (given.has_value()) {
    return PrintableHeader(
        std::string_view(*given).substr(0, kMaxLoggedIdBytes));
  }
  static thread_local absl::BitGen random;
  return absl::StrCat(
      absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16));
}

// The same for one session, and no name: what a tenant calls it may say whose
// it is.
std::string SessionHash(const std::string& tenant, const std::string& session) {
  return ToHex(Sha256Of(absl::StrCat(tenant, "/", session))).substr(0, 16);
}

// What a tenant's limit on requests counts: the other methods are over soon.
bool TakesTheEngine(Method method) {
  return method == Method::kChat || method == Method::kGenerate ||
         method == Method::kScore || method == Method::kModelInfer ||
         method == Method::kModelStreamInfer ||
         method == Method::kChatCompletions ||
         method == Method::kCompletions || method == Method::kEmbeddings ||
         method == Method::kCreateResponse;
}

}  // namespace

std::string PrintableHeader(std::string_view text) {
  std::string out;
  for (char c : text.substr(0, kMaxHeaderValueBytes)) {
    out += c >= ' ' && c <= '~' ? c : '?';
  }
  return out;
}

std::string Loggable(std::string_view text) { return LogValue(ToUtf8(text)); }

bool AtDeadline(SteadyTime start, SteadyTime deadline, SteadyTime now) {
  if (deadline == SteadyTime::max()) return false;
  const SteadyTime::duration early =
      (deadline - start) / 100 + std::chrono::milliseconds(1);
  return now >= deadline - early;
}

std::string DescribeFinal(const FinalInfo& final) {
  return absl::StrCat(
      " prompt_tokens=", final.prompt_tokens,
      " reused_tokens=", final.reused.total(),
      " prefilled_tokens=", final.prefilled_tokens,
      " generated_tokens=", final.generated_tokens,
      " queue_us=", final.timings.queue_us,
      " restore_us=", final.timings.restore_us,
      " ttft_us=", final.timings.ttft_us, " turn=", final.turn,
      " durability=", std::string(DurabilityName(final.durability)));
}

FrontendCall::FrontendCall(Frontend& frontend, CallFacts facts)
    : frontend_(frontend),
      facts_(std::move(facts)),
      start_(std::chrono::steady_clock::now()),
      request_id_(RequestId(facts_.request_id)) {}

absl::Status FrontendCall::Admit(std::string tenant, int64_t bytes) {
  tenant_ = std::move(tenant);
  XC_ASSIGN_OR_RETURN(core_, frontend_.gate.Enter());
  if (TakesTheEngine(facts_.method)) XC_RETURN_IF_ERROR(TakePlaces(1));
  XC_ASSIGN_OR_RETURN(held_, Hold(bytes));
  return absl::OkStatus();
}

absl::Status FrontendCall::TakePlaces(int64_t count) {
  XC_ASSIGN_OR_RETURN(TenantHold places, Take(frontend_.tenants, tenant_,
                                              TenantLimit::kRequests, count));
  places_.push_back(std::move(places));
  return absl::OkStatus();
}

absl::StatusOr<RequestBytes::Held> FrontendCall::Hold(int64_t bytes) const {
  RequestBytes& all = frontend_.request_bytes;
  if (bytes > all.limit()) {
    return WithReason(
        absl::InvalidArgumentError(absl::StrCat(
            "the request takes ", bytes,
            " bytes of memory, and all requests together may take ",
            all.limit())),
        Reason::kRequestTooLarge);
  }
  const bool several =
      frontend_.tenants != nullptr && frontend_.tenants->has_several();
  auto held =
      all.Hold(bytes, several ? std::string_view(tenant_) : std::string_view());
  if (!held.has_value()) {
    return WithReason(
        absl::ResourceExhaustedError(absl::StrCat(
            "the requests that are worked on hold the ", all.limit(),
            " bytes that are set aside for them, or this tenant's part of "
            "them")),
        Reason::kOutOfMemory);
  }
  return *std::move(held);
}

int64_t FrontendCall::RetryAfter(const absl::Status& status) {
  return absl::IsResourceExhausted(status)
             ? RetryAfterOf(status).value_or(kBusyRetryMs)
             : 0;
}

void FrontendCall::Run(WorkClass work, std::function<bool()> is_cancelled,
                       std::function<void()> body, const RefuseFn& refuse) {
  auto task = [this, refuse, is_cancelled = std::move(is_cancelled),
               body = std::move(body)] {
    // Nobody waits for it any more: not worth beginning.
    if (is_cancelled()) {
      refuse(absl::CancelledError("cancelled before it was begun"), 0);
    } else if (std::chrono::steady_clock::now() >= facts_.deadline) {
      refuse(absl::DeadlineExceededError(
                 "the request's deadline passed before it was begun"),
             0);
    } else {
      body();
    }
  };
  if (!frontend_.workers.Submit(work, tenant_, std::move(task))) {
    refuse(WithReason(absl::ResourceExhaustedError("too many requests at once"),
                      Reason::kQueueFull),
           kBusyRetryMs);
  }
}

std::string FrontendCall::DescribeRequest() const {
  std::string out = absl::StrCat(" request_id=", LogValue(request_id_));
  if (facts_.trace.has_value()) {
    absl::StrAppend(&out, " trace_id=", LogValue(facts_.trace->trace_id),
                    " span_id=", LogValue(facts_.trace->span_id));
  }
  return out;
}

std::string FrontendCall::DescribeIds() const {
  std::string out = DescribeRequest();
  const std::string session = facts_.session.substr(0, kMaxLoggedIdBytes);
  if (session.empty()) return out;
  absl::StrAppend(&out, " session=", Loggable(session));
  if (!tenant_.empty()) {
    absl::StrAppend(&out,
                    " session_hash=", LogValue(SessionHash(tenant_, session)));
  }
  return out;
}

void FrontendCall::SetBase(const std::shared_ptr<Cancellation>& cancellation,
                           RequestBase* base) const {
  base->tenant = tenant_;
  base->deadline = facts_.deadline;
  base->cancellation = cancellation;
  base->log_ids = DescribeRequest();
}

FrontendCall::Ending FrontendCall::Close(absl::Status status,
                                         int64_t retry_after_ms,
                                         std::string_view details) {
  // Before the client hears of it, who may come with the next one at once.
  places_.clear();
  const auto now = std::chrono::steady_clock::now();
  // A transport cancels a call at its deadline: say which of the two it was.
  if (status.code() == absl::StatusCode::kCancelled &&
      AtDeadline(start_, facts_.deadline, now)) {
    status = absl::DeadlineExceededError("the request's deadline has passed");
  }
  Ending ending;
  if (status.code() == absl::StatusCode::kUnavailable) {
    if (retry_after_ms == 0) retry_after_ms = kUnavailableRetryMs;
    ending.progress = frontend_.gate.progress();
  }
  const double seconds = std::chrono::duration<double>(now - start_).count();
  // That is how a client asks whether loading is through: an answer, and no
  // failure.
  const bool poll = facts_.method == Method::kGetModelInfo && !status.ok() &&
                    ReasonOf(status).id == Reason::kLoading;
  if (!poll) {
    frontend_.metrics.CountRequest(facts_.method, status.code(), seconds);
  }
  spdlog::log(
      poll ? spdlog::level::debug : spdlog::level::info,
      "request method={} code={} tenant={} ms={:.1f} peer={}{}{}{}",
      MethodName(facts_.method), CodeName(status.code()),
      LogValue(tenant_.empty() ? "-" : tenant_), seconds * 1e3,
      LogValue(facts_.peer), DescribeIds(), details,
      status.ok()
          ? ""
          : absl::StrCat(
                " reason=", std::string(ReasonOf(status).name), " error=",
                Loggable({status.message().data(), status.message().size()})));
  ending.status = std::move(status);
  ending.retry_after_ms = retry_after_ms;
  return ending;
}

void RefusalLog::Note(std::string_view path, const absl::Status& status) {
  MutexLock lock(mu_);
  ++unlogged_;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_logged_ < std::chrono::seconds(1)) return;
  XC_LOG_INFO("calls refused", "code=UNAUTHENTICATED count={} path={} error={}",
              unlogged_, LogValue(ToUtf8(path.substr(0, 128))),
              LogValue(std::string(status.message())));
  unlogged_ = 0;
  last_logged_ = now;
}

}  // namespace xcache
