#include "server/core/reason.h"

#include <iterator>
#include <string>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace xcache {
namespace {

using Code = absl::StatusCode;

constexpr ReasonDef kTable[] = {
    {Reason::kCancelled, "CANCELLED", Code::kCancelled},
    {Reason::kUnknown, "UNKNOWN", Code::kUnknown},
    {Reason::kInvalidRequest, "INVALID_REQUEST", Code::kInvalidArgument},
    {Reason::kContextTooLong, "CONTEXT_TOO_LONG", Code::kInvalidArgument},
    {Reason::kRequestTooLarge, "REQUEST_TOO_LARGE", Code::kInvalidArgument},
    {Reason::kDeadlineExceeded, "DEADLINE_EXCEEDED", Code::kDeadlineExceeded},
    {Reason::kSessionNotFound, "SESSION_NOT_FOUND", Code::kNotFound},
    {Reason::kModelNotFound, "MODEL_NOT_FOUND", Code::kNotFound},
    {Reason::kSessionExists, "SESSION_EXISTS", Code::kAlreadyExists},
    {Reason::kPermissionDenied, "PERMISSION_DENIED", Code::kPermissionDenied},
    {Reason::kOutOfMemory, "OUT_OF_MEMORY", Code::kResourceExhausted},
    {Reason::kQueueFull, "QUEUE_FULL", Code::kResourceExhausted},
    {Reason::kSlowReader, "SLOW_READER", Code::kResourceExhausted},
    {Reason::kTenantRequests, "TENANT_REQUESTS", Code::kResourceExhausted},
    {Reason::kTenantQueuedTokens, "TENANT_QUEUED_TOKENS",
     Code::kResourceExhausted},
    {Reason::kTenantTokensPerMinute, "TENANT_TOKENS_PER_MINUTE",
     Code::kResourceExhausted},
    {Reason::kTenantSessions, "TENANT_SESSIONS", Code::kResourceExhausted},
    {Reason::kTenantPageBytes, "TENANT_PAGE_BYTES", Code::kResourceExhausted},
    {Reason::kWrongState, "WRONG_STATE", Code::kFailedPrecondition},
    {Reason::kOtherModel, "OTHER_MODEL", Code::kFailedPrecondition},
    {Reason::kNoChatTemplate, "NO_CHAT_TEMPLATE", Code::kFailedPrecondition},
    {Reason::kSessionBusy, "SESSION_BUSY", Code::kAborted},
    {Reason::kTurnConflict, "TURN_CONFLICT", Code::kAborted},
    {Reason::kOutOfRange, "OUT_OF_RANGE", Code::kOutOfRange},
    {Reason::kUnimplemented, "UNIMPLEMENTED", Code::kUnimplemented},
    {Reason::kInternal, "INTERNAL", Code::kInternal},
    {Reason::kStoreUnavailable, "STORE_UNAVAILABLE", Code::kUnavailable},
    {Reason::kShuttingDown, "SHUTTING_DOWN", Code::kUnavailable},
    {Reason::kLoading, "LOADING", Code::kUnavailable},
    {Reason::kSessionDamaged, "SESSION_DAMAGED", Code::kDataLoss},
    {Reason::kUnauthenticated, "UNAUTHENTICATED", Code::kUnauthenticated},
};

constexpr char kPayload[] = "xcache/reason";
constexpr char kRetryPayload[] = "xcache/retry-after-ms";

}  // namespace

std::span<const ReasonDef> ReasonTable() { return kTable; }

absl::Status WithReason(absl::Status status, Reason reason) {
  const std::string_view name = kTable[static_cast<size_t>(reason)].name;
  status.SetPayload(kPayload,
                    absl::Cord(absl::string_view(name.data(), name.size())));
  return status;
}

absl::Status WithRetryAfter(absl::Status status, int64_t ms) {
  status.SetPayload(kRetryPayload, absl::Cord(absl::StrCat(ms)));
  return status;
}

std::optional<int64_t> RetryAfterOf(const absl::Status& status) {
  const auto given = status.GetPayload(kRetryPayload);
  int64_t ms = 0;
  if (!given.has_value() || !absl::SimpleAtoi(std::string(*given), &ms)) {
    return std::nullopt;
  }
  return ms;
}

absl::Status ShuttingDown() {
  return WithReason(absl::UnavailableError("the server is shutting down"),
                    Reason::kShuttingDown);
}

const ReasonDef& ReasonOf(const absl::Status& status) {
  const auto given = status.GetPayload(kPayload);
  const ReasonDef* by_code = nullptr;
  for (const ReasonDef& def : kTable) {
    if (def.code != status.code()) continue;
    if (by_code == nullptr) by_code = &def;
    if (given.has_value() &&
        *given == absl::string_view(def.name.data(), def.name.size())) {
      return def;
    }
  }
  return by_code != nullptr ? *by_code
                            : kTable[static_cast<size_t>(Reason::kUnknown)];
}

}  // namespace xcache
