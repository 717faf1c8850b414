// The remat policy (engine/engine.h) by the name that operators and callers
// give it, and as a session's manifest keeps it.
#ifndef XCACHE_SERVER_CORE_SESSIONS_REMAT_SETTING_H_
#define XCACHE_SERVER_CORE_SESSIONS_REMAT_SETTING_H_

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/core/core_metrics.h"

namespace xcache {

// INVALID_ARGUMENT: neither "resume" nor "step".
absl::StatusOr<RematPolicy> ParseRematPolicy(std::string_view name);

// A manifest's setting of that name (SessionRecord::settings).
using SessionSettings = std::vector<std::pair<std::string, std::string>>;
inline constexpr std::string_view kRematSetting = "remat";
// Nothing: there is none, as in older manifests, or none that we know. "auto",
// which earlier versions left undecided until a session's first turn, is
// resume.
std::optional<RematPolicy> RematOf(const SessionSettings& settings);
void SetRemat(RematPolicy policy, SessionSettings* settings);

// What counts the sessions that are given this policy.
constexpr CoreCounter CounterOf(RematPolicy policy) {
  return policy == RematPolicy::kStep ? CoreCounter::kSessionsStep
                                      : CoreCounter::kSessionsResume;
}

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SESSIONS_REMAT_SETTING_H_
