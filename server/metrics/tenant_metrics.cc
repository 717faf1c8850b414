#include "server/metrics/tenant_metrics.h"

#include <string_view>

namespace xcache {

void SampleTenants(const TenantLedger& tenants, const SessionStore& store,
                   SampleWriter& writer) {
  for (const TenantLedger::Use& use : tenants.uses()) {
    const std::string_view limit = DefOf(use.limit).name;
    int64_t used = use.used;
    if (use.limit == TenantLimit::kSessions) {
      used += store.UseOf(use.tenant).num_sessions;
    } else if (use.limit == TenantLimit::kPageBytes) {
      used += store.UseOf(use.tenant).page_bytes;
    }
    writer.Set(Metric::kTenantLimit, static_cast<double>(use.most),
               {use.tenant, limit});
    writer.Set(Metric::kTenantUse, static_cast<double>(used),
               {use.tenant, limit});
    writer.Set(Metric::kTenantRefusals, static_cast<double>(use.refusals),
               {use.tenant, limit});
  }
}

}  // namespace xcache
