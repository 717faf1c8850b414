// Why a request failed, for programs: what its code alone leaves open. Set
// where the status is made, and carried by it to whichever front end answers.
#ifndef XCACHE_SERVER_CORE_REASON_H_
#define XCACHE_SERVER_CORE_REASON_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "absl/status/status.h"

namespace xcache {

// The first of each code is what a status of that code is without a reason: it
// must be true of whatever the engine and the store say.
enum class Reason {
  kCancelled,
  kUnknown,
  kInvalidRequest,
  kContextTooLong,
  kRequestTooLarge,
  kDeadlineExceeded,
  kSessionNotFound,
  kModelNotFound,
  kSessionExists,
  kPermissionDenied,
  kOutOfMemory,
  kQueueFull,
  kSlowReader,
  kTenantRequests,
  kTenantQueuedTokens,
  kTenantTokensPerMinute,
  kTenantSessions,
  kTenantPageBytes,
  kWrongState,
  kOtherModel,
  kNoChatTemplate,
  kSessionBusy,
  kTurnConflict,
  kOutOfRange,
  kUnimplemented,
  kInternal,
  kStoreUnavailable,
  kShuttingDown,
  kLoading,
  kSessionDamaged,
  kUnauthenticated,
};

struct ReasonDef {
  Reason id;
  std::string_view name;  // "SESSION_BUSY"
  absl::StatusCode code;
};
// In the order of Reason.
std::span<const ReasonDef> ReasonTable();

// The status with this reason. REQUIRES: it has the reason's code.
absl::Status WithReason(absl::Status status, Reason reason);

// The status with a hint when to try again; 0: time does not help.
absl::Status WithRetryAfter(absl::Status status, int64_t ms);
// That hint; nothing: whoever answers is to say.
std::optional<int64_t> RetryAfterOf(const absl::Status& status);

// UNAVAILABLE: this server takes no request any more.
absl::Status ShuttingDown();

// The reason that it was given, or its code's first. REQUIRES: not OK.
const ReasonDef& ReasonOf(const absl::Status& status);

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_REASON_H_
