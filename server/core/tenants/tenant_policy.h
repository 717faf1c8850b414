// What an operator allows a tenant: its weight, and limits, all of them
// optional. Plain values; who counts against them is TenantLedger.
#ifndef XCACHE_SERVER_CORE_TENANTS_TENANT_POLICY_H_
#define XCACHE_SERVER_CORE_TENANTS_TENANT_POLICY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "server/core/reason.h"

namespace xcache {

enum class TenantLimit {
  kRequests,         // Chat, Generate and Score under way
  kQueuedTokens,     // of prompts in the queue
  kTokensPerMinute,  // asked for, in any 60 seconds
  kSessions,
  kPageBytes,  // of the pages that its sessions name
  kCount,
};
inline constexpr size_t kNumTenantLimits =
    static_cast<size_t>(TenantLimit::kCount);

struct TenantLimitDef {
  TenantLimit id;
  std::string_view name;  // "queued-tokens", as the token file has it
  Reason reason;          // of a refusal
};
// In the order of TenantLimit.
std::span<const TenantLimitDef> TenantLimitTable();
const TenantLimitDef& DefOf(TenantLimit limit);

inline constexpr int64_t kMaxTenantWeight = 1000;

struct TenantPolicy {
  int64_t weight = 1;  // 1 to kMaxTenantWeight
  std::array<std::optional<int64_t>, kNumTenantLimits> limits{};

  const std::optional<int64_t>& limit(TenantLimit id) const {
    return limits[static_cast<size_t>(id)];
  }
  bool operator==(const TenantPolicy&) const = default;
};

// By tenant.
using TenantPolicies = std::map<std::string, TenantPolicy, std::less<>>;

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_TENANTS_TENANT_POLICY_H_
