// Takes from a ledger that need not be there: without one nobody has limits.
#ifndef XCACHE_SERVER_CORE_TENANTS_TAKE_H_
#define XCACHE_SERVER_CORE_TENANTS_TAKE_H_

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "cachestore/session_store.h"
#include "engine/base/status_macros.h"
#include "server/core/tenants/tenant_ledger.h"

namespace xcache {

inline absl::StatusOr<TenantHold> Take(TenantLedger* tenants,
                                       std::string_view tenant,
                                       TenantLimit limit, int64_t amount,
                                       int64_t beside = 0) {
  if (tenants == nullptr) return TenantHold();
  return tenants->Take(tenant, limit, amount, beside);
}

inline int64_t WeightOf(const TenantLedger* tenants, std::string_view tenant) {
  return tenants == nullptr ? 1 : tenants->WeightOf(tenant);
}

// One more session with pages of so many bytes; held until it is stored.
struct SessionPlace {
  TenantHold session, page_bytes;
};
inline absl::StatusOr<SessionPlace> TakeSession(TenantLedger* tenants,
                                                const SessionStore& store,
                                                std::string_view tenant,
                                                uint64_t page_bytes) {
  SessionPlace place;
  if (tenants == nullptr) return place;
  const TenantSessions stored = store.UseOf(tenant);
  XC_ASSIGN_OR_RETURN(
      place.session,
      Take(tenants, tenant, TenantLimit::kSessions, 1, stored.num_sessions));
  XC_ASSIGN_OR_RETURN(
      place.page_bytes,
      Take(tenants, tenant, TenantLimit::kPageBytes,
           static_cast<int64_t>(page_bytes), stored.page_bytes));
  return place;
}

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_TENANTS_TAKE_H_
